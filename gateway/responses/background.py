"""Responses under way in the background: which of them run here, and how one is cancelled wherever it runs."""

import asyncio
import contextlib
from collections.abc import Callable

from gateway.responses.store import FINAL, Store, Stored
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError
from shared.fleet import Fleet

CANCEL_S = 2.0
SETTLE_S = 5.0  # for responses to be stored as what they ended as, when this gateway stops

log = logs.get(__name__)


class Background:
    """The background work of one gateway, from `start` to `close`."""

    def __init__(self, bus: Bus, fleet: Fleet, gateway_id: str, store: Store) -> None:
        self.gateway_id = gateway_id
        self.store = store
        self.tasks = Tasks()
        self._bus = bus
        self._fleet = fleet
        self._running: dict[str, tuple[Callable[[], None], asyncio.Event]] = {}  # id → what cancels it, its end
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for cancellations."""
        self._subscription = await self._bus.subscribe(names.responses_rpc(self.gateway_id), self._on_cancel)

    async def close(self) -> None:
        """Wait a moment for what was ended with the dispatcher to be stored. May be called twice."""
        await self.tasks.settle(SETTLE_S)
        await self.tasks.close()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def add(self, identifier: str, cancel: Callable[[], None]) -> None:
        """A response begins."""
        self._running[identifier] = (cancel, asyncio.Event())

    def remove(self, identifier: str) -> None:
        """A response is over."""
        if running := self._running.pop(identifier, None):
            running[1].set()

    async def current(self, record: Stored) -> Stored:
        """The record as it stands: a response whose gateway is gone has failed, and is stored as such."""
        if record.response["status"] in FINAL or record.gateway == self.gateway_id:
            return record
        if record.gateway in self._fleet.gateways:
            return record
        error = {"code": "server_error", "message": "The gateway that worked on this response is gone; send it again."}
        record.response |= {"status": "failed", "error": error}
        record.gateway = ""
        await self.store.put(record)
        return record

    async def cancel(self, record: Stored) -> Stored:
        """Cancel a response that is under way; one that is over stays what it is."""
        identifier = record.response["id"]
        record = await self.current(record)
        if record.response["status"] in FINAL:
            return record
        if record.gateway == self.gateway_id:
            await self._cancel_here(identifier)
        else:
            try:
                subject = names.responses_rpc(record.gateway)
                await self._bus.request(subject, identifier.encode(), timeout_s=CANCEL_S)
            except BusError as error:
                log.warning("background.cancel_failed", response=identifier, gateway=record.gateway, error=str(error))
        return await self.store.require(identifier)

    async def _cancel_here(self, identifier: str) -> None:
        """Cancel, and wait until it is stored as cancelled."""
        if running := self._running.get(identifier):
            cancel, ended = running
            cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await ended.wait()

    async def _on_cancel(self, message: Msg) -> None:
        await self._cancel_here(message.data.decode("ascii", "replace"))
        if message.reply:
            await message.respond(b"")
