"""Tells whoever asks where a job of this gateway is, or how it ended."""

from collections import OrderedDict

import msgspec

from gateway.dispatch import Dispatcher
from gateway.flight import Flight
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.messages import FindJob, FoundJob, encode

MAX_ENDED = 2000

_decode = msgspec.json.Decoder(FindJob).decode


class Whereabouts:
    """Answers from `start` to `close`. Jobs that ended are remembered, the latest ones."""

    def __init__(self, bus: Bus, dispatcher: Dispatcher, gateway_id: str) -> None:
        self._bus = bus
        self._dispatcher = dispatcher
        self._id = gateway_id
        self._ended: OrderedDict[str, FoundJob] = OrderedDict()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen."""
        self._subscription = await self._bus.subscribe(names.JOB_FIND, self._on_find)

    async def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def ended(self, flight: Flight) -> None:
        """A job is over."""
        self._ended[flight.id] = self._found(flight)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    async def _on_find(self, message: Msg) -> None:
        job = _decode(message.data).job
        flight = self._dispatcher.streams.flights.get(job)
        found = self._found(flight) if flight is not None else self._ended.get(job)
        if found is not None and message.reply:  # whoever does not know it is silent: another may
            await self._bus.publish(message.reply, encode(found))

    def _found(self, flight: Flight) -> FoundJob:
        return FoundJob(
            job=flight.id,
            model=flight.model,
            gateway=self._id,
            state=flight.state,
            worker=flight.worker,
            replica=flight.replica,
            attempt=flight.attempt,
            age_s=round(self._dispatcher.clock() - flight.started, 3),
            tokens=flight.num_tokens,
            ahead=flight.ahead,
            moves=list(flight.moves),
            error=str(flight.error) if flight.error is not None else "",
        )
