"""Keeps the plan's catalogue at what `models.toml` says, while the gateway runs.

Every gateway may have the file. Each writes when its own copy is new to it: at its start and at each change, and only
entries that differ. So equal files write once, and of unlike ones the last that was changed counts.
"""

import asyncio
import time
from pathlib import Path

import msgspec

from gateway.models_file import ORIGIN, parse
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError, CatalogueError
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.records import ModelRecord

LOOK_S = 0.5  # between two looks at the file; what is the same at two of them counts
MAX_BYTES = 4 << 20

_Stamp = tuple[int, ...] | None

log = logs.get(__name__)


def read(path: Path) -> list[ModelRecord]:
    """The records of the file at `path`. Raises CatalogueError, also when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CatalogueError(str(path), 1, f"it cannot be read: {error.strerror}", "make it readable") from error
    if len(data) > MAX_BYTES:
        raise CatalogueError(str(path), 1, f"it is over {MAX_BYTES} bytes", "make it shorter")
    try:
        return parse(data.decode(), str(path))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CatalogueError(str(path), line, "this is not UTF-8", "save it as UTF-8") from error


def changes(
    records: list[ModelRecord], known: dict[str, ModelRecord], now_s: float
) -> list[tuple[str, ModelRecord | None]]:
    """What to write so that the plan holds these records: (model, its record, or None to remove it).

    Entries that operators added stay, unless the file names them; those that left the file go.
    """
    wanted = {record.id: record for record in records}
    todo: list[tuple[str, ModelRecord | None]] = []
    for model, record in wanted.items():
        before = known.get(model)
        record = msgspec.structs.replace(record, created_s=before.created_s if before else now_s)
        if record != before:
            todo.append((model, record))
    todo += [(model, None) for model, record in known.items() if record.origin == ORIGIN and model not in wanted]
    return todo


class ModelsLoader:
    """Follows one file from `start` to `close`.

    A bad file at the start is an error; one that turns bad later is logged with line and remedy, and what was there
    before stays.
    """

    def __init__(self, bus: Bus, fleet: Fleet, path: Path) -> None:
        self._bucket = Bucket(bus, names.PLAN)
        self._fleet = fleet
        self._path = path
        self._seen: _Stamp = None  # of what was read
        self._before: _Stamp = None  # at the last look
        self._pending: list[ModelRecord] | None = None
        self._tasks = Tasks()

    async def start(self) -> None:
        """Read the file and begin to follow it. Raises CatalogueError."""
        self._seen = self._before = self._stamp()
        self._pending = await asyncio.to_thread(read, self._path)
        await self._write()
        self._tasks.spawn(self._follow(), "catalogue")

    async def close(self) -> None:
        """Stop following. May be called twice."""
        await self._tasks.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            stamp = self._stamp()
            # A file that changed since the last look may still be being written; half of one may be good TOML, too.
            if stamp != self._seen and stamp == self._before:
                await self._read_again()
            self._before = stamp
            await self._write()

    async def _read_again(self) -> None:
        stamp = self._before
        try:
            records = await asyncio.to_thread(read, self._path)
        except CatalogueError as error:
            self._seen, self._pending = stamp, None
            log.error("catalogue.refused", path=error.path, line=error.line, error=str(error))
        else:
            if self._stamp() == stamp:  # else it changed meanwhile, and is read at a later look
                self._seen, self._pending = stamp, records

    async def _write(self) -> None:
        """Bring the plan up to date; what fails for want of a server is tried again at the next look."""
        if self._pending is None:
            return
        todo = changes(self._pending, dict(self._fleet.models), time.time())
        try:
            for model, record in todo:
                key = names.model_key(model)
                if record is None:
                    await self._bucket.delete(key)
                else:
                    await self._bucket.put(key, msgspec.json.encode(record))
        except BusError as error:
            log.warning("catalogue.unwritten", error=str(error))
            return
        log.info("catalogue.loaded", path=str(self._path), models=len(self._pending), changed=len(todo))
        self._pending = None

    def _stamp(self) -> _Stamp:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ino, status.st_size)
