"""Responses under way in the background: which of them run here, and how one is cancelled wherever it runs."""

import asyncio
import contextlib
from collections.abc import Callable

from gateway.dialects.openai_responses_answer import ending
from gateway.errors import Unavailable
from gateway.responses.events import EventLog, Run
from gateway.responses.store import FINAL, Store, Stored, Superseded
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError, BusTimeout, NoResponders
from shared.fleet import Fleet

CANCEL_S = 2.0  # for a cancelled response to be stored as that
ANSWER_S = 1.0  # more, for the word of another gateway
LAST_S = 5.0  # for the last events to be kept, after the record is final
SETTLE_S = 5.0  # for responses to be stored as what they ended as, when this gateway stops

log = logs.get(__name__)


class Background:
    """The background work of one gateway, from `start` to `close`."""

    def __init__(self, bus: Bus, fleet: Fleet, gateway_id: str, store: Store, keepalive_s: float = 10.0) -> None:
        self.gateway_id = gateway_id
        self.store = store
        self.events = EventLog(bus)
        self.keepalive_s = keepalive_s
        self.tasks = Tasks()
        self._bus = bus
        self._fleet = fleet
        self._running: dict[str, tuple[Callable[[], None], asyncio.Event]] = {}  # id → what cancels it, its end
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for cancellations."""
        self._subscription = await self._bus.subscribe(names.responses_rpc(self.gateway_id), self._on_rpc)

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

    async def watch(self, identifier: str, moved: asyncio.Event) -> Subscription:
        """Set the event whenever further events of this response are stored. To be unsubscribed."""
        return await self._bus.listen(names.response_moved(identifier), lambda message: moved.set())

    def seems_alive(self, record: Stored) -> bool:
        """Whether somebody works on a response, as far as is known without asking."""
        if record.response["status"] in FINAL:
            return False
        if record.gateway == self.gateway_id:
            return record.response["id"] in self._running
        return record.gateway in self._fleet.gateways

    def may_write(self, record: Stored, since_s: float) -> bool:
        """Whether the gateway of a response that has been final so long may still be about to keep its last events."""
        if record.gateway == self.gateway_id:
            return record.response["id"] in self._running
        return record.gateway in self._fleet.gateways and since_s < LAST_S

    async def current(self, record: Stored) -> Stored:
        """The record as it stands: a response that nobody works on any more has failed, and is stored as such.

        1. Final, or worked on here: as it is. 2. Its gateway is in the fleet, or answers: as it is.
        3. It is gone: failed, unless somebody was faster. Should it live and only be cut off, it may write no more.
        """
        identifier = record.response["id"]
        if record.response["status"] in FINAL or self.seems_alive(record):
            return record
        if record.gateway != self.gateway_id and await self._lives(record):
            return record
        error = {"code": "server_error", "message": "The gateway that worked on this response is gone; send it again."}
        record.response |= {"status": "failed", "error": error}
        record.gateway = ""
        try:
            await self.store.put(record, is_guarded=True)
        except Superseded:
            return await self.store.require(identifier)
        await self.end_events(record)
        return record

    async def end_events(self, record: Stored) -> None:
        """Keep the last event of a response that is final, if its gateway was lost before it could."""
        if not record.has_events:
            return
        tail = await self.events.tail(record.response["id"])
        if tail is not None and tail.is_last:
            return
        first, number = (0, 0) if tail is None else (tail.last + 1, tail.number + 1)
        with contextlib.suppress(Superseded):  # somebody was faster
            run = Run(first, ending(record.response, first).decode(), True, number)
            await self.events.append(record.response["id"], run)

    async def cancel(self, record: Stored) -> Stored:
        """Cancel a response that is under way; one that is over stays what it is.

        Raises Unavailable when the gateway that works on it cannot be reached.
        """
        identifier = record.response["id"]
        record = await self.current(record)
        if record.response["status"] in FINAL:
            return record
        if record.gateway == self.gateway_id:
            await self._cancel_here(identifier)
        else:
            subject = names.responses_rpc(record.gateway)
            try:
                await self._bus.request(subject, identifier.encode(), timeout_s=CANCEL_S + ANSWER_S)
            except BusError as error:
                log.warning("background.cancel_failed", response=identifier, gateway=record.gateway, error=str(error))
                raise Unavailable("The gateway that works on this response cannot be reached; ask again.") from error
        return await self.store.require(identifier)

    async def delete(self, record: Stored) -> None:
        """Forget a response and its events; one that is under way is cancelled first.

        What its gateway still had to say of it is not written: it writes only over what it wrote itself.
        """
        identifier = record.response["id"]
        if record.response["status"] not in FINAL:
            with contextlib.suppress(Unavailable):
                await self.cancel(record)
        await self.store.delete(identifier)
        if record.has_events:
            await self.events.forget(identifier)

    async def _lives(self, record: Stored) -> bool:
        """Whether the gateway of a response answers, though the fleet does not know it: as after an outage."""
        try:
            await self._bus.request(names.responses_rpc(record.gateway), b"", timeout_s=ANSWER_S)
        except (NoResponders, BusTimeout):
            return False
        except BusError:
            pass  # our own trouble: no verdict
        return True

    async def _cancel_here(self, identifier: str) -> None:
        """Cancel, and wait until it is stored as cancelled."""
        if running := self._running.get(identifier):
            cancel, ended = running
            cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await ended.wait()

    async def _on_rpc(self, message: Msg) -> None:
        """The id of a response to be cancelled; nothing: only whether this gateway lives."""
        self.tasks.spawn(self._answer(message), "background.answer")  # one that is slow holds up no other

    async def _answer(self, message: Msg) -> None:
        if message.data:
            await self._cancel_here(message.data.decode("ascii", "replace"))
        if message.reply:
            await self._bus.publish(message.reply, b"")
