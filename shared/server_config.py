"""The configuration of a nats-server for Plexus: accounts, users, permissions, limits.

`config/nats/nats-server.conf` is what `render` makes of the default settings.
"""

import json
import re
from pathlib import Path

from shared import names
from shared.settings import BrokerSettings

_VARIABLE = re.compile(r"\$[A-Z][A-Z0-9_]*")
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
        max_pending=max(64 << 20, 4 * settings.max_payload_bytes),  # a few such messages for one connection
        store=_quote(settings.store_dir),
        max_memory=settings.max_memory_bytes,
        max_file=settings.max_file_bytes,
        tls=_tls(settings),
        system_password=_secret(settings.system_password),
        disconnects=_quote(names.DISCONNECTS),
        users="\n".join(users),
    )


_TEMPLATE = """\
# A nats-server for Plexus (2.12 or later; 2.11 serves without load-aware dispatch). Made by `plexus nats-config`.
#
# A password like $NAME is taken from the server's environment. Such a one should begin with a letter: the server takes
# a value like 123 for a number, and does not start.

server_name: {name}
host: {host}
port: {port}
{files}
# A whole prompt with its images is one message.
max_payload: {max_payload}
max_pending: {max_pending}

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
        f"{names.PREFIX}.rpc.>",
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
