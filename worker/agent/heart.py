"""The host's records in the fleet bucket: on change, not more often than ten times a second, and to keep them alive.

The worker's own is written each second; a replica's that did not change every other, as each write wakes the broker
and all who mirror it.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

import msgspec

from shared import messages, names
from shared.errors import BusError
from shared.kv import Bucket
from shared.log import get
from shared.records import HEARTBEAT_S, RECORD_TTL_S, RENEW_S, ReplicaRecord, WorkerRecord

log = get(__name__)

CHANGE_GAP_S = 0.1
_DUE = -math.inf  # written never, or in vain


class Heart:
    """Writes the records of one worker. Nobody else writes them."""

    def __init__(
        self, bucket: Bucket, worker: Callable[[], WorkerRecord], replicas: Callable[[], list[ReplicaRecord]]
    ) -> None:
        self._bucket = bucket
        self._worker = worker
        self._replicas = replicas
        self._changed = asyncio.Event()
        self._beaten = asyncio.Event()
        self._written: dict[str, tuple[ReplicaRecord, float]] = {}  # by id: what, when
        self._is_silent = False

    def change(self) -> None:
        """Something in a record changed."""
        self._changed.set()

    async def beaten(self) -> None:
        """Return when the records were written once."""
        await self._beaten.wait()

    async def run(self) -> None:
        """Beat, for ever."""
        while True:
            self._changed.clear()
            await self.beat()
            await asyncio.sleep(CHANGE_GAP_S)
            # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S - CHANGE_GAP_S):
                    await self._changed.wait()

    async def beat(self) -> None:
        """Write the worker's record, and those of its replicas that changed or are due; delete what is gone."""
        now, tick = time.time(), time.monotonic()  # the host's clock may be set while records are due
        worker = msgspec.structs.replace(self._worker(), at_s=now)
        replicas = {record.id: record for record in self._replicas()}
        work = [self._put(names.worker_key(worker.name), worker)]
        for id, record in replicas.items():
            before, at = self._written.get(id, (None, _DUE))
            if record != before or tick - at >= RENEW_S - CHANGE_GAP_S:
                self._written[id] = (record, tick)
                work.append(self._put(names.replica_key(id), msgspec.structs.replace(record, at_s=now)))
        for id in [id for id in self._written if id not in replicas]:
            del self._written[id]
            work.append(self._bucket.delete(names.replica_key(id)))
        try:
            await asyncio.gather(*work)
        except BusError as error:  # keys expire by themselves, and the next beat comes in a second
            if not self._is_silent:
                log.warning("heart.silent", error=str(error))
            self._is_silent = True
            self._written = {id: (record, _DUE) for id, (record, _) in self._written.items()}  # all are due again
        else:
            self._is_silent = False
            self._beaten.set()

    async def end(self) -> None:
        """Take all records back."""
        keys = [names.replica_key(id) for id in self._written]
        keys.append(names.worker_key(self._worker().name))
        await asyncio.gather(*(self._bucket.delete(key) for key in keys), return_exceptions=True)

    async def _put(self, key: str, record: WorkerRecord | ReplicaRecord) -> None:
        await self._bucket.put(key, messages.encode(record), ttl_s=RECORD_TTL_S)
