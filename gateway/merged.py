"""Several jobs of one request, read as one: a completion may have many prompts, and each is a job of its own."""

import asyncio
from collections.abc import Sequence

import msgspec

from gateway.flight import Flight
from gateway.request import Event, Finished, Opened
from shared.messages import Delta, Timings, Usage


class Merged:
    """The one reader of these flights. The choices of each count on from those of the one before."""

    def __init__(self, flights: Sequence[Flight], choices: int) -> None:
        """`choices`: of each flight."""
        self._flights = flights
        self._choices = choices
        self._is_open = False
        self._left = len(flights)
        self._usage = Usage()
        self._timings = Timings()
        self._moved = asyncio.Event()
        for flight in flights:
            flight.notify = self._moved.set

    async def events(self) -> list[Event]:
        """The events since the last call, waiting for the first; empty only when a flight was cancelled.

        Between `Opened` at the beginning and `Finished` when the last flight has finished; `Broken` if any one is.
        """
        while True:
            self._moved.clear()
            events: list[Event] = []
            for index, flight in enumerate(self._flights):
                if flight.state == "cancelled":
                    return []
                for event in flight.take():
                    events += self._merge(index, event)
            if events:
                return events
            await self._moved.wait()

    def _merge(self, index: int, event: Event) -> Sequence[Event]:
        if isinstance(event, Delta):
            return (msgspec.structs.replace(event, choice=event.choice + index * self._choices),)
        if isinstance(event, Opened):
            is_first, self._is_open = not self._is_open, True
            return (event,) if is_first else ()
        if isinstance(event, Finished):
            self._add(event)
            self._left -= 1
            return () if self._left else (Finished(self._usage, self._timings),)
        return (event,)

    def _add(self, event: Finished) -> None:
        usage, timings = self._usage, self._timings
        for name in usage.__struct_fields__:
            setattr(usage, name, getattr(usage, name) + getattr(event.usage, name))
        for name in timings.__struct_fields__:  # they ran side by side
            setattr(timings, name, max(getattr(timings, name), getattr(event.timings, name)))
