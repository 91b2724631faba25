"""Looks after jobs under way: finds dead, hung and forgetful replicas, and moves their jobs.

One loop for all jobs. Nobody is judged while this gateway itself has no connection.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

import msgspec

from gateway.dialects.conversation import image_lengths
from gateway.dispatch import Dispatcher
from gateway.errors import DeadlineExceeded
from gateway.flight import Flight
from gateway.request import Waiting
from gateway.streams import Peer
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError, BusTimeout, NoResponders
from shared.messages import Ping, Pong, encode
from shared.names import JobClass
from shared.settings import GatewaySettings

TICK_S = 0.05
SILENCE_S = 0.3  # of a replica, before it is asked whether it lives
PING_S = 0.3
NUM_REFUSALS = 2  # nobody listens: dead
NUM_TIMEOUTS = 3  # no answer: hung
CALM_S = 0.5  # after an answer, before the next ping
REJOIN_S = 1.0  # what replicas get to come back after an outage of the bus
FORGOTTEN_S = 2.0  # of a job, while its replica lives, before missed deltas are asked for
ACCEPT_S = 0.75  # from publication, before the queue is asked where the job is
LOOK_S = 0.5  # between two looks at one queue
GRACE_S = 1.25  # what a replica gets to answer for a job it took; doubled with each attempt
GRACE_CHARACTERS = 1_000_000  # of prompt, for one second more
GRACE_IMAGE_S = 0.25  # more for each image, which is unpacked and scaled before the job is accepted
PEERS_S = 60.0

log = logs.get(__name__)
_decode_pong = msgspec.json.Decoder(Pong).decode
_PING = encode(Ping())


class _Advised(msgspec.Struct):
    name: str = ""


class _Advisory(msgspec.Struct):
    client: _Advised


_decode_advisory = msgspec.json.Decoder(_Advisory).decode


class Supervisor:
    """The loop, from `start` to `close`."""

    def __init__(
        self, bus: Bus, dispatcher: Dispatcher, settings: GatewaySettings, describe: Callable[[Flight], Waiting]
    ) -> None:
        self._bus = bus
        self._dispatcher = dispatcher
        self._streams = dispatcher.streams
        self._settings = settings
        self._describe = describe
        self._clock: Callable[[], float] = time.monotonic
        self._tasks = Tasks()
        self._is_blind = False
        self._rejoin_until = 0.0  # replicas may not be back yet after an outage
        self._next_look: dict[tuple[str, JobClass], float] = {}
        self._next_sweep = 0.0
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin."""
        self._subscription = await self._bus.subscribe(names.DISCONNECTS, self._on_disconnect)
        self._bus.on_reconnect(self._on_reconnect)
        self._dispatcher.on_refused = self._on_refused
        self._tasks.spawn(self._run(), "supervise")

    async def close(self) -> None:
        """End. May be called twice."""
        await self._tasks.close()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    async def _run(self) -> None:
        while True:
            await self._dispatcher.busy.wait()  # without jobs there is nothing to look after
            await asyncio.sleep(TICK_S)
            try:
                self._tick(self._clock())
            except Exception:
                log.exception("supervise.failed")

    def _tick(self, now: float) -> None:
        self._watch_clocks(now)
        self._dispatcher.suspects.look(now)
        if not self._bus.is_connected:
            self._is_blind = True
            return
        if self._is_blind:
            self._see_again(now)
        late: defaultdict[tuple[str, JobClass], list[Flight]] = defaultdict(list)
        for flight in list(self._streams.flights.values()):
            if flight.replica:
                self._watch_replica(flight, now)
            elif flight.seq is not None and now - flight.published > ACCEPT_S:
                late[flight.model, flight.job.job_class].append(flight)
        for queue, flights in late.items():
            if now >= self._next_look.get(queue, 0.0):
                self._next_look[queue] = now + LOOK_S
                self._tasks.spawn(self._look_for(queue, flights), "supervise.look")
        if now >= self._next_sweep:
            self._next_sweep = now + PEERS_S
            self._streams.forget_silent(now - PEERS_S)
            self._next_look = {queue: at for queue, at in self._next_look.items() if at > now}

    def _watch_clocks(self, now: float) -> None:
        """Deadlines and keep-alives, which need no bus."""
        for flight in list(self._streams.flights.values()):
            if now >= flight.deadline:
                error = DeadlineExceeded(self._settings.job_deadline_s)
                self._dispatcher.perform(flight.id, flight.fail(error, now))
            elif now - flight.emitted >= self._settings.keepalive_s:
                flight.keep_alive(self._describe(flight), now)

    def _watch_replica(self, flight: Flight, now: float) -> None:
        peer = self._streams.peer(flight.replica, now)
        if now - peer.heard > SILENCE_S and now >= peer.next_probe:
            self._suspect(peer.id, closed=False)
        if now - flight.heard > FORGOTTEN_S and now - flight.asked > FORGOTTEN_S:
            self._dispatcher.perform(flight.id, flight.ask_again(now))

    # --- replicas --------------------------------------------------------------------------------------------

    def _on_refused(self, replica: str) -> None:
        """Nobody listened to what this replica was asked. After an outage that says nothing: it is asked again."""
        if self._clock() >= self._rejoin_until:
            self._suspect(replica, closed=False)

    def _suspect(self, replica: str, *, closed: bool) -> None:
        peer = self._streams.peers.get(replica)
        if peer is not None and not peer.is_probed:
            peer.is_probed = True
            self._tasks.spawn(self._probe(peer, closed), "supervise.probe")

    async def _probe(self, peer: Peer, closed: bool) -> None:
        """Ask a replica whether it lives. `closed`: the server said that its connection ended."""
        refusals = timeouts = 0
        try:
            while True:
                try:
                    data = await self._bus.request(names.replica_rpc(peer.id), _PING, timeout_s=PING_S)
                    pong = _decode_pong(data)
                except NoResponders:
                    refusals += 1
                    # 1. Dead: the server and its own listener say so, or nobody listens twice in a row.
                    if closed or refusals >= NUM_REFUSALS:
                        return self._lost(peer, "dead")
                    await asyncio.sleep(PING_S)
                except BusTimeout:
                    timeouts += 1
                    # 2. Hung: the process is there and says nothing.
                    if timeouts >= NUM_TIMEOUTS:
                        return self._lost(peer, "hung")
                except (BusError, msgspec.MsgspecError):
                    return None  # our own trouble: no verdict
                else:
                    # 3. Its front answers for a rank that hangs. A long prefill is no hang: it judges that itself.
                    if pong.hung:
                        return self._lost(peer, "hung")
                    return None
        finally:
            peer.is_probed = False
            peer.next_probe = self._clock() + CALM_S

    def _lost(self, peer: Peer, reason: str) -> None:
        if not self._bus.is_connected:
            return
        now = self._clock()
        victims = [flight for flight in self._streams.flights.values() if flight.replica == peer.id]
        self._streams.peers.pop(peer.id, None)  # should it still live, it is known again when it is heard
        if victims:
            log.warning("replica.lost", replica=peer.id, worker=peer.worker, reason=reason, jobs=len(victims))
        for flight in victims:
            self._dispatcher.perform(flight.id, flight.on_lost(peer.id, reason, now))

    async def _on_disconnect(self, message: Msg) -> None:
        kind, ident = names.parse_client_name(_decode_advisory(message.data).client.name)
        if kind == "replica":
            self._suspect(ident, closed=True)

    # --- the queue -------------------------------------------------------------------------------------------

    async def _look_for(self, queue: tuple[str, JobClass], flights: list[Flight]) -> None:
        """Jobs that nobody has answered for: do they wait in the queue, or were they taken and lost?"""
        model, job_class = queue
        try:
            await self._bus.ensure_consumer(model, job_class)
            info = await self._bus.consumer_info(names.JOBS, names.job_consumer(model, job_class))
        except BusError as error:
            log.warning("queue.unknown", model=model, job_class=job_class, error=str(error))
            return
        if info is None:
            return
        taken, pending = int(info["delivered"]["stream_seq"]), int(info["num_pending"])
        now = self._clock()
        waiting = sorted(
            (one for one in flights if one.seq is not None and not one.replica), key=lambda one: one.seq or 0
        )
        for behind, flight in enumerate(reversed(waiting)):
            seq = flight.seq or 0
            # 1. Taken, and no answer: it gets a moment more for a long prompt, then the job goes to another.
            if seq <= taken:
                flight.delivered = flight.delivered or now
                if now - flight.delivered > _grace_s(flight):
                    self._dispatcher.perform(flight.id, flight.on_unanswered(flight.attempt, "unanswered", now))
            # 2. Neither taken nor waiting: the queue lost it. Looked at twice, for the two numbers may be apart.
            elif pending == 0:
                flight.vanished += 1
                if flight.vanished > 1:
                    self._dispatcher.perform(flight.id, flight.on_unanswered(flight.attempt, "vanished", now))
            # 3. It waits.
            else:
                flight.ahead = max(0, pending - 1 - behind)
        for flight, before in self._dispatcher.turns.held(model, job_class):
            flight.ahead = pending + before

    # --- outages ---------------------------------------------------------------------------------------------

    async def _on_reconnect(self) -> None:
        now = self._clock()
        self._see_again(now)
        for flight in list(self._streams.flights.values()):
            self._dispatcher.perform(flight.id, flight.ask_again(now))

    def _see_again(self, now: float) -> None:
        """What was silent during an outage may have had no way to speak."""
        self._is_blind = False
        self._rejoin_until = now + REJOIN_S
        for peer in self._streams.peers.values():
            peer.heard = now + REJOIN_S
        for flight in self._streams.flights.values():
            flight.heard = now
            if flight.seq is not None:
                flight.published = now
                flight.delivered = 0.0


def _grace_s(flight: Flight) -> float:
    patience: float = GRACE_S * 2.0 ** len(flight.losses)
    for length in image_lengths(flight.job.prompt):
        patience += GRACE_IMAGE_S + length / GRACE_CHARACTERS
    return patience + flight.job.estimate_tokens * 4 / GRACE_CHARACTERS
