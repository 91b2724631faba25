"""By how much loads took more than they were granted, kept over restarts, so that an estimate errs only once."""

from pathlib import Path

import msgspec

from shared.log import get
from shared.records import ModelRecord

log = get(__name__)

FILE = "memory.json"
MAX_ENTRIES = 1000
LEAST_STEP_BYTES = 64 << 20


class MemoryBook:
    """Bytes to add to a model's next grant, by what of it matters to memory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._excess = self._read()

    def excess_bytes(self, model: ModelRecord, device_kind: str) -> int:
        """What the last load took beyond its grant."""
        return self._excess.get(_key(model, device_kind), 0)

    def note(self, model: ModelRecord, device_kind: str, granted_bytes: int, measured_bytes: int) -> None:
        """A load is over; the grant already held what was known of its excess."""
        key = _key(model, device_kind)
        before = self._excess.get(key, 0)
        excess = before + max(0, measured_bytes - granted_bytes)
        if excess == before:
            return
        log.warning("memory.underestimated", model=model.id, granted=granted_bytes, measured=measured_bytes)
        self._excess.pop(key, None)
        self._excess[key] = excess  # the latest last
        while len(self._excess) > MAX_ENTRIES:
            del self._excess[next(iter(self._excess))]
        self._write()

    def lacked(self, model: ModelRecord, device_kind: str, granted_bytes: int) -> int:
        """A load ran out of its grant, and nobody knows how much it lacked. Returns what to grant the next time."""
        wanted = granted_bytes + max(LEAST_STEP_BYTES, granted_bytes // 4)
        self.note(model, device_kind, granted_bytes, wanted)
        return wanted

    def _read(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("memory.unreadable", path=str(self._path), error=str(error))
            return {}

    def _write(self) -> None:
        partial = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(self._excess))
            partial.replace(self._path)
        except OSError as error:  # it is learnt again
            log.warning("memory.unwritable", path=str(self._path), error=str(error))


def _key(model: ModelRecord, device_kind: str) -> str:
    parts = (model.id, model.source, model.revision, model.dtype, model.quantization, device_kind)
    return " ".join(parts if model.devices == 1 else (*parts, f"over {model.devices}"))
