"""The data directory of an embedded fleet: its lock, its logs, and fleet.json, by which other commands find it.

nats/        the broker's store: queued jobs, catalogue, intents
worker-N/    a worker's state
logs/        one file a process
fleet.json   addresses, pids and operator credentials of the running fleet; only its owner may read it
up.lock      held by `plexus up` while it runs
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway.cli.errors import CliError, DataDirInUse, NoFleet
from shared.process import is_running

FLEET_FILE = "fleet.json"


@dataclass(frozen=True, kw_only=True)
class FleetFile:
    """What fleet.json holds."""

    api: str
    metrics: str
    nats: str
    user: str  # the operator's
    password: str
    models: list[str] = field(default_factory=list)
    pids: dict[str, int] = field(default_factory=dict)  # of nats, gateway, worker-1 …
    pid: int = field(default_factory=os.getpid)  # of plexus up

    def public(self) -> dict[str, Any]:
        """Everything but the credentials."""
        fields = asdict(self)
        del fields["user"], fields["password"]
        return fields


class DataDir:
    """The data directory; as a context manager, its owner while a fleet runs. Raises DataDirInUse."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """Where the processes log to."""
        return self.path / "logs"

    def __enter__(self) -> "DataDir":
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            lock = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CliError(f"the data directory {self.path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20)
            os.close(lock)
            raise DataDirInUse(self.path, int(owner) if owner.isdigit() else None) from None
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock = lock
        (self.path / FLEET_FILE).unlink(missing_ok=True)  # of a fleet that was killed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._lock is None:
            return
        (self.path / FLEET_FILE).unlink(missing_ok=True)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)
        self._lock = None

    def write(self, fleet: FleetFile) -> None:
        """Replace fleet.json, at once and readable by its owner alone."""
        draft = self.path / f"{FLEET_FILE}.new"
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(fleet), file, indent=2)
        draft.replace(self.path / FLEET_FILE)

    def read(self) -> FleetFile:
        """The running fleet. Raises NoFleet when there is none."""
        try:
            with (self.path / FLEET_FILE).open() as file:
                fleet = FleetFile(**json.load(file))
        except FileNotFoundError:
            raise NoFleet(self.path) from None
        except (OSError, ValueError, TypeError) as error:
            raise CliError(f"{self.path / FLEET_FILE} cannot be read: {error}") from error
        if not is_running(fleet.pid):
            raise NoFleet(self.path)  # it was killed
        return fleet
