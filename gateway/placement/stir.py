"""Which changes of records a plan could depend on. Pure.

Every record is written each second with the time and figures of the moment; planning on each of them would cost a
large fleet's leader all of its time.
"""

import msgspec

from shared.fleet import Record
from shared.records import Device, GatewayRecord, LeaseRecord, MeasuredRecord, ReplicaRecord, WorkerRecord

STEPS = 64  # free memory is looked at in so many steps of the whole


class Stir:
    """Remembers what it saw of each key."""

    def __init__(self) -> None:
        self._seen: dict[str, object] = {}

    def matters(self, key: str, record: Record | None) -> bool:
        """Did anything change that a rule looks at?"""
        if record is None:
            return self._seen.pop(key, None) is not None
        essence = _essence(record)
        if self._seen.get(key) == essence:
            return False
        self._seen[key] = essence
        return essence is not None


def _essence(record: Record) -> object:
    if isinstance(record, GatewayRecord | LeaseRecord | MeasuredRecord):
        return None
    if isinstance(record, WorkerRecord):
        devices = [_rough(device) for device in record.devices]
        failures = [(one.model, one.at_s) for one in record.failures]
        return (record.incarnation, record.state, devices, failures, record.generation)
    if isinstance(record, ReplicaRecord):
        is_busy = bool(record.running or record.waiting)
        memory = max(record.reserved_bytes, record.measured_bytes)
        return (record.state, is_busy, memory, tuple(record.devices), record.load_s)
    return record


def _rough(device: Device) -> object:
    step = max(1, device.total_bytes // STEPS)
    return msgspec.structs.replace(device, free_bytes=device.free_bytes // step)
