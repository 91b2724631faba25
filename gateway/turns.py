"""Whose job goes into the queue next, so that a client who has many does not stand before all who come later. Pure.

The queue gives out jobs in the order in which they came. So only few jobs of one share (an API key) wait in it for a
model at a time; further ones wait here, and each follows as soon as one of those before it is accepted or over. With
several shares, and several gateways, the queue then holds a few jobs of each: they take turns.

A job that was in the queue once, and is published again, does not wait here.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct, field

from gateway.flight import Flight
from shared.names import JobClass

LEAST = 2  # one is on its way to a replica, the next one follows at once
PART_OF_SLOTS = 4  # of what the model's replicas take at once, one share may have a fourth waiting


class _Line(Struct):
    """The jobs of one share for one model and class that no replica has accepted yet."""

    queued: set[str] = field(default_factory=set)  # ids of those that are in the queue, or on their way there
    held: "OrderedDict[str, Flight]" = field(default_factory=OrderedDict)  # those that are not


class Turns:
    """Every job enters once, and leaves once it is accepted or over."""

    def __init__(self) -> None:
        self.num_slots: Callable[[str], int] = lambda model: 0  # jobs that the model's replicas take at once
        self._lines: dict[tuple[str, JobClass, str], _Line] = {}

    def enter(self, flight: Flight) -> bool:
        """A new job. Whether it goes into the queue now; else `leave` names it later."""
        line = self._lines.setdefault(_key(flight), _Line())
        if line.held or not self._has_room(line, flight.model):
            line.held[flight.id] = flight
            return False
        line.queued.add(flight.id)
        return True

    def leave(self, flight: Flight) -> list[Flight]:
        """It was accepted, or is over. Those that go into the queue now. May be called again for the same job."""
        line = self._lines.get(_key(flight))
        if line is None:
            return []
        line.queued.discard(flight.id)
        line.held.pop(flight.id, None)
        following = []
        while line.held and self._has_room(line, flight.model):
            _, one = line.held.popitem(last=False)
            line.queued.add(one.id)
            following.append(one)
        if not line.queued:
            del self._lines[_key(flight)]
        return following

    def held(self, model: str, job_class: JobClass) -> Iterator[tuple[Flight, int]]:
        """The jobs that wait here, each with how many of these go before it when all shares take turns."""
        key = model, job_class
        lines = [list(line.held.values()) for of, line in self._lines.items() if of[:2] == key]
        counts: dict[int, int] = {}  # by place in its own line
        for line in lines:
            for place, flight in enumerate(line):
                if place not in counts:
                    counts[place] = sum(min(len(other), place + 1) for other in lines) - 1
                yield flight, counts[place]

    def _has_room(self, line: _Line, model: str) -> bool:
        num = len(line.queued)
        return num < LEAST or num < self.num_slots(model) // PART_OF_SLOTS


def _key(flight: Flight) -> tuple[str, JobClass, str]:
    return flight.model, flight.job.job_class, flight.job.share


def is_full(waiting: Sequence[str], share: str, limit: int) -> bool:
    """Whether a model's queue takes no further job of a share; `waiting` are the shares of those that wait for it.

    A share with less than its even part of the limit is let in beyond it, so that one alone cannot fill it for all.
    """
    if len(waiting) < limit:
        return False
    return waiting.count(share) * len({*waiting, share}) >= limit or len(waiting) >= 2 * limit
