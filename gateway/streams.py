"""From delta batches to flights, and from a flight to whoever reads its answer."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.flight import Action, Flight, SendCancel, SendConfirm
from gateway.request import Event
from shared import log as logs
from shared.messages import DeltaBatch, Item

MAX_SETTLED = 20_000  # ended jobs whose late messages still get the right answer
MAX_TOLD = 20_000
TELL_AGAIN_S = 1.0

log = logs.get(__name__)
_decode = msgspec.json.Decoder(DeltaBatch).decode


@dataclass(slots=True)
class Peer:
    """A replica as this gateway hears it."""

    id: str
    worker: str
    heard: float
    next_probe: float = 0.0
    is_probed: bool = False


class Streams:
    """Every job under way, every replica heard of, and what to say about jobs that are over. Pure."""

    def __init__(self, max_settled: int = MAX_SETTLED, max_told: int = MAX_TOLD) -> None:
        self._max_settled = max_settled
        self._max_told = max_told
        self.flights: dict[str, Flight] = {}
        self.peers: dict[str, Peer] = {}
        self._settled: OrderedDict[str, tuple[str, int]] = OrderedDict()  # of jobs that got done: replica, attempt
        self._told: dict[tuple[str, str, int], float] = {}

    def add(self, flight: Flight) -> None:
        """A new job."""
        self.flights[flight.id] = flight

    def remove(self, flight: Flight) -> None:
        """A job is over."""
        self.flights.pop(flight.id, None)
        if flight.state == "done":
            self._settled[flight.id] = (flight.replica, flight.attempt)
            if len(self._settled) > self._max_settled:
                self._settled.popitem(last=False)

    def peer(self, replica: str, now: float) -> Peer:
        """What is known of a replica; one never heard of counts as heard now."""
        found = self.peers.get(replica)
        if found is None:
            found = self.peers[replica] = Peer(replica, "", now)
        return found

    def on_batch(self, data: bytes, now: float) -> list[tuple[str, Sequence[Action]]]:
        """Take in one message of a replica. Returns what to do, by job id."""
        try:
            batch = _decode(data)
        except msgspec.MsgspecError as error:
            log.warning("batch.undecodable", error=str(error), size=len(data))
            return []
        replica, worker, flights = batch.replica, batch.worker, self.flights
        peer = self.peer(replica, now)
        peer.heard, peer.worker = now, worker
        todo: list[tuple[str, Sequence[Action]]] = []
        for item in batch.items:
            flight = flights.get(item.job)
            actions = flight.on_item(replica, worker, item, now) if flight else self._stray(replica, item)
            if actions and self._is_due(item, actions, now):
                todo.append((item.job, actions))
        return todo

    def forget_silent(self, before: float) -> None:
        """Drop replicas that hold no job here and were not heard since `before`."""
        holding = {flight.replica for flight in self.flights.values()}
        for replica in [one.id for one in self.peers.values() if one.heard < before and one.id not in holding]:
            del self.peers[replica]

    def _stray(self, replica: str, item: Item) -> Sequence[Action]:
        """An item of a job that is over, or was never here."""
        if self._settled.get(item.job) == (replica, item.attempt):
            return (SendConfirm(replica, item.attempt),)  # the first confirmation was lost
        return (SendCancel(replica, item.attempt),)

    def _is_due(self, item: Item, actions: Sequence[Action], now: float) -> bool:
        """A zombie says much before it hears that it should stop: it is told once a second at most."""
        if len(actions) > 1 or type(actions[0]) is not SendCancel:
            return True
        key = (actions[0].replica, item.job, item.attempt)
        if now - self._told.get(key, -TELL_AGAIN_S) < TELL_AGAIN_S:
            return False
        if len(self._told) >= self._max_told:
            self._told.clear()
        self._told[key] = now
        return True


class Reader:
    """The one reader of a flight's events."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._waiter: asyncio.Future[None] | None = None
        flight.notify = self._wake

    async def events(self) -> list[Event]:
        """The events since the last call, waiting for the first; empty only when the flight was cancelled."""
        while not self._flight.outbox and self._flight.state != "cancelled":
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._flight.take()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
