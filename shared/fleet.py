"""What is and what should be, typed: a live view of both buckets."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import msgspec

from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.mirror import Mirror
from shared.records import (
    AssignmentRecord,
    DrainRecord,
    GatewayRecord,
    IntentRecord,
    LeaseRecord,
    MeasuredRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)

Record = (
    WorkerRecord
    | ReplicaRecord
    | GatewayRecord
    | LeaseRecord
    | ModelRecord
    | IntentRecord
    | AssignmentRecord
    | DrainRecord
    | MeasuredRecord
)

_DECODERS: dict[str, Callable[[bytes], Any]] = {
    kind: msgspec.json.Decoder(record).decode
    for kind, record in {
        "worker": WorkerRecord,
        "replica": ReplicaRecord,
        "gw": GatewayRecord,
        "lease": LeaseRecord,
        "model": ModelRecord,
        "intent": IntentRecord,
        "want": AssignmentRecord,
        "drain": DrainRecord,
        "measured": MeasuredRecord,
    }.items()
}
_BY_MODEL = ("model", "intent", "measured")

log = logs.get(__name__)


def decode(key: str, value: bytes) -> Record | None:
    """The record of a key of either bucket; None for kinds that this version does not know.

    Raises msgspec.ValidationError or ValueError for what is no such record.
    """
    kind, rest = names.key_kind(key)
    model = names.model_id(rest) if kind in _BY_MODEL else ""
    decoder = _DECODERS.get(kind)
    record: Record | None = decoder(value) if decoder else None
    if isinstance(record, IntentRecord):
        if record.model not in ("", model):
            raise ValueError(f"it is about {record.model!r}, and its key is that of {model!r}")
        record.model = model  # who types one leaves it out
    if isinstance(record, DrainRecord):
        record.worker = rest
    return record


class Fleet:
    """The fleet as this process knows it. The dictionaries change in place; copy them before awaiting."""

    def __init__(self, bus: Bus) -> None:
        self.workers: dict[str, WorkerRecord] = {}  # by name
        self.replicas: dict[str, ReplicaRecord] = {}  # by id
        self.gateways: dict[str, GatewayRecord] = {}  # by id
        self.leases: dict[str, LeaseRecord] = {}  # by name
        self.models: dict[str, ModelRecord] = {}  # by model id
        self.intents: dict[str, IntentRecord] = {}  # by model id
        self.wants: dict[str, AssignmentRecord] = {}  # by worker name
        self.drains: dict[str, DrainRecord] = {}  # by worker name
        self.measured: dict[str, MeasuredRecord] = {}  # by model id
        self._views: dict[str, dict[str, Any]] = {
            "worker": self.workers,
            "replica": self.replicas,
            "gw": self.gateways,
            "lease": self.leases,
            "model": self.models,
            "intent": self.intents,
            "want": self.wants,
            "drain": self.drains,
            "measured": self.measured,
        }
        self._mirrors: list[Mirror[Record]] = [Mirror(bus, bucket, decode) for bucket in (names.FLEET, names.PLAN)]
        self._waiters: set[asyncio.Event] = set()
        for mirror in self._mirrors:
            mirror.on_change(self._update)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Return when both buckets are known; waits as long as they are not there."""
        await asyncio.gather(*(mirror.start() for mirror in self._mirrors))

    async def close(self) -> None:
        """Stop following. May be called twice."""
        for mirror in self._mirrors:
            await mirror.close()

    def replicas_of(self, model: str) -> list[ReplicaRecord]:
        """The replicas of a model id, in whatever state."""
        return [replica for replica in self.replicas.values() if replica.model == model]

    def revision(self, key: str) -> int:
        """The revision at which a key of either bucket was last seen; 0 if never."""
        return max(mirror.revision(key) for mirror in self._mirrors)

    def on_change(self, callback: Callable[[str, Record | None], None]) -> None:
        """Call this with (key, record) after each change; the record is None when the key is gone."""
        for mirror in self._mirrors:
            mirror.on_change(callback)

    @property
    def refused(self) -> dict[str, str]:
        """Keys whose latest value is no record, and why. They count as absent."""
        return {key: reason for mirror in self._mirrors for key, reason in mirror.refused.items()}

    def on_refusal(self, callback: Callable[[str, str], None]) -> None:
        """Call this with (key, reason) when somebody wrote what is no record."""
        for mirror in self._mirrors:
            mirror.on_refusal(callback)

    async def wait_for(self, predicate: Callable[["Fleet"], Any], timeout_s: float) -> None:
        """Return as soon as `predicate(self)` is true; it is tried after each change. Raises TimeoutError."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self):
                    await changed.wait()
                    changed.clear()
        finally:
            self._waiters.discard(changed)

    def _update(self, key: str, record: Record | None) -> None:
        kind, rest = names.key_kind(key)
        view = self._views[kind]
        ident = names.model_id(rest) if kind in _BY_MODEL else rest
        if record is None:
            view.pop(ident, None)
        else:
            view[ident] = record
        for waiter in self._waiters:
            waiter.set()
