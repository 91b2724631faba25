"""This gateway's record in the fleet: written every two seconds, expiring when the writing stops."""

import asyncio
import contextlib
from collections.abc import Callable

from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError
from shared.kv import Bucket
from shared.messages import encode
from shared.records import RECORD_TTL_S, RENEW_S, GatewayRecord

log = logs.get(__name__)


class Presence:
    """Keeps the record from `start` to `close`, which removes it."""

    def __init__(self, bus: Bus, record: Callable[[], GatewayRecord]) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, names.FLEET)
        self._record = record
        self._tasks = Tasks()
        self._key = names.gateway_key(record().id)

    async def start(self) -> None:
        """Begin; the first record is written before this returns, if there is a connection."""
        await self._write()
        self._tasks.spawn(self._beat(), "presence")

    async def close(self) -> None:
        """Stop and remove the record. May be called twice."""
        await self._tasks.close()
        if self._bus.is_connected:  # without, it expires by itself
            with contextlib.suppress(BusError):
                await self._bucket.delete(self._key)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await self._write()

    async def _write(self) -> None:
        try:
            await self._bucket.put(self._key, encode(self._record()), ttl_s=RECORD_TTL_S)
        except BusError as error:
            log.warning("presence.unwritten", error=str(error))
