"""Who this worker is: a name that stays over restarts, kept in the state directory."""

import re
import secrets
import socket
from pathlib import Path

import msgspec

from shared import names
from shared.settings import WorkerSettings

FILE = "worker.json"


class _State(msgspec.Struct):
    name: str


def worker_name(settings: WorkerSettings) -> str:
    """The name in the settings, else the one kept since the first start, else one made from the host's name.

    Raises ValueError for a name that cannot stand in a subject.
    """
    if settings.name:
        return names.check_token(settings.name, "the worker's name")
    path = settings.state_dir / FILE
    try:
        return names.check_token(msgspec.json.decode(path.read_bytes(), type=_State).name, f"the name in {path}")
    except FileNotFoundError:
        name = _made_up_name()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    _write(path, msgspec.json.encode(_State(name)))
    return name


def _made_up_name() -> str:
    """From the host's name, with something random: hosts made from one image share theirs."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().split(".")[0]).strip("-")
    return f"{host or 'worker'}-{secrets.token_hex(2)}"


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)
