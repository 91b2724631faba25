"""Publishes jobs and performs what flights decide: the only module that acts on the bus for a request."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from gateway import errors, turns
from gateway.afterwards import Afterwards
from gateway.flight import Action, AskReplay, DeleteMessage, End, Flight, Publish, SendCancel, SendConfirm
from gateway.metrics import Metrics
from gateway.request import InferenceRequest
from gateway.streams import Streams
from gateway.suspects import Suspects
from gateway.tasks import Tasks
from gateway.turns import Turns
from shared import log as logs
from shared import names
from shared.bus import Answer, Bus, Msg, Subscription
from shared.errors import BadSubject, BusError, NoResponders, PayloadTooLarge, QueueFull
from shared.messages import Cancel, Claim, Claimed, Confirm, Job, OwnerRequest, Pong, Replay, Replayed, encode
from shared.settings import GatewaySettings

REPLAY_S = 1.0
PUBLISH_S = 10.0  # how long the first attempt of a job may take to get into the queue
AGAIN_S = 0.25
SETTLE_S = 2.0
SUSPECT_S = 0.05
HELD_S = 0.01  # below, a job was published at once

_Notes = defaultdict[str, list[tuple[str, int]]]  # (job, attempt) by replica

log = logs.get(__name__)
_decode_rpc = msgspec.json.Decoder(OwnerRequest).decode
_decode_replayed = msgspec.json.Decoder(Replayed).decode


class Dispatcher:
    """The jobs of this gateway on the bus. `start` before the first `submit`; `close` ends what still runs."""

    def __init__(self, bus: Bus, settings: GatewaySettings, gateway_id: str, metrics: Metrics) -> None:
        self.id = gateway_id
        self.streams = Streams()
        self.suspects = Suspects()
        self.turns = Turns()
        self.clock: Callable[[], float] = time.monotonic
        self.afterwards = Afterwards()
        self.on_end: Callable[[Flight], None] = lambda flight: None  # a job is over
        self.on_refused: Callable[[str], None] = lambda replica: None  # a replica did not answer: look after it
        self._bus = bus
        self._settings = settings
        self._metrics = metrics
        self._tasks = Tasks()
        self._sender = Tasks()
        self._subscriptions: list[Subscription] = []
        self.busy = asyncio.Event()  # set while there are jobs
        self._is_stopping = False
        self._cancels: _Notes = defaultdict(list)
        self._confirms: _Notes = defaultdict(list)
        self._notes = asyncio.Event()

    async def start(self) -> None:
        """Listen for deltas and claims."""
        self._subscriptions = [
            await self._bus.listen(names.delta_subject(self.id), self._on_batch),
            await self._bus.subscribe(names.gateway_rpc(self.id), self._on_rpc),
        ]
        self._sender.spawn(self._send_notes(), "dispatch.notes")

    async def stop(self) -> None:
        """End every job with an error, and take them from the replicas and the queue."""
        self._is_stopping = True
        now = self.clock()
        for flight in list(self.streams.flights.values()):
            self.perform(flight.id, flight.fail(errors.ShuttingDown(), now))

    async def close(self) -> None:
        """Send what is still to be said, and stop listening. May be called twice."""
        await self._tasks.settle(SETTLE_S)
        await self._tasks.close()
        self.afterwards.settle()
        await self._sender.close()
        await self._flush_notes()
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions = []

    # --- requests --------------------------------------------------------------------------------------------

    def submit(self, request: InferenceRequest, job_id: str, model: str = "", share: str = "") -> Flight:
        """Publish a job for this request. Failures come out of the flight. `model`: whose alias the request names;
        `share`: whose share of a replica it takes.

        Raises QueueFull and ShuttingDown (of gateway.errors), which need no job to be known.
        """
        if self._is_stopping:
            raise errors.ShuttingDown
        model = model or request.model
        waiting = [one.job.share for one in self.streams.flights.values() if one.model == model and not one.accepted]
        if turns.is_full(waiting, share, self._settings.max_queue_per_model):
            raise errors.QueueFull(request.model, len(waiting))
        now = self.clock()
        job = Job(
            id=job_id,
            model=model,
            reply=names.delta_subject(self.id),
            owner=names.gateway_rpc(self.id),
            prompt=request.prompt,
            sampling=request.sampling,
            task=request.task,
            inputs=list(request.inputs),
            constraint=request.constraint,
            job_class=request.job_class,
            share=share,
            deadline_s=time.time() + self._settings.job_deadline_s,
            estimate_tokens=request.estimate_tokens,
        )
        deadline = now + self._settings.job_deadline_s
        flight = Flight(job, max_attempts=self._settings.max_attempts, deadline=deadline, now=now)
        flight.on_hold = self._on_hold
        self.streams.add(flight)
        self.busy.set()
        self._metrics.entered(flight.model)
        if self.turns.enter(flight):
            self.perform(flight.id, (Publish(flight.attempt),))
        return flight

    def cancel(self, flight: Flight) -> None:
        """The client is gone."""
        self.perform(flight.id, flight.cancel(self.clock()))

    # --- what flights decide ---------------------------------------------------------------------------------

    def perform(self, job: str, actions: Sequence[Action]) -> None:
        """Do what a flight, or the record of ended ones, asks for."""
        for action in actions:
            if type(action) is SendConfirm:
                self._confirms[action.replica].append((job, action.attempt))
                self.afterwards(self._notes.set)
            elif type(action) is SendCancel:
                self._cancels[action.replica].append((job, action.attempt))
                self._notes.set()
            elif type(action) is DeleteMessage:
                self._tasks.spawn(self._delete(action.seq), "dispatch.delete")
            elif flight := self.streams.flights.get(job):
                if type(action) is Publish:
                    self._publish(flight, action)
                elif type(action) is AskReplay:
                    self._metrics.replays.inc()
                    self._tasks.spawn(self._replay(flight, action), "dispatch.replay")
                elif type(action) is End:
                    self.streams.remove(flight)
                    if not self.streams.flights:
                        self.busy.clear()
                    self._next_turns(flight)
                    self.on_end(flight)
                    self._metrics.left(flight.model)

    def _publish(self, flight: Flight, action: Publish) -> None:
        if action.reason:
            self._metrics.redispatches.labels(action.reason).inc()
            log.warning(
                "job.moved",
                job=flight.id,
                model=flight.model,
                reason=action.reason,
                attempt=action.attempt,
                tokens=flight.num_tokens,
            )
        message = posted = None
        if (
            not flight.is_suspect
            and self._bus.is_connected
            and self._bus.is_ensured(flight.model, flight.job.job_class)
        ):
            message = self._message(flight)
            with contextlib.suppress(BusError):  # the task meets it again, and knows what to do
                posted = self._bus.post(*message, self._ttl_s(flight))
        self._tasks.spawn(self._enqueue(flight, action.attempt, message, posted), "dispatch.publish")

    def _message(self, flight: Flight) -> tuple[str, bytes, str]:
        """Subject, payload and message id of the job at its current attempt.

        The time before its first turn counts as time in the queue.
        """
        held_s = self.clock() - flight.started if flight.attempt == 1 else 0.0
        job = flight.job_to_publish(time.time() - held_s)
        if held_s > HELD_S:
            job = msgspec.structs.replace(job, held_s=round(held_s, 3))
        return names.job_subject(job.model, job.job_class), encode(job), f"{job.id}.{job.attempt}"

    def _ttl_s(self, flight: Flight) -> float:
        """How long its message may stay in the queue."""
        return max(1.0, flight.deadline - self.clock())

    async def _enqueue(
        self, flight: Flight, attempt: int, message: tuple[str, bytes, str] | None, posted: Answer | None
    ) -> None:
        """The first attempt fails soon, as nobody has seen anything of it; later ones are tried to the deadline.

        `posted`: `message` is on its way already.
        """
        if flight.is_suspect and not await self._wait_for_turn(flight, attempt):
            return
        message = message or self._message(flight)
        patience = flight.deadline if attempt > 1 else self.clock() + PUBLISH_S
        # A posted message is heard of to its end, whatever became of the flight: it may have to be taken back.
        while posted is not None or (flight.attempt == attempt and not flight.is_over):
            try:
                await self._bus.ensure_consumer(flight.model, flight.job.job_class)
                answer, posted = posted, None
                seq = await self._bus.enqueue(*message, self._ttl_s(flight), posted=answer)
            except PayloadTooLarge as error:
                problem: errors.ApiError = errors.JobTooLarge(error.size, error.limit)
                patience = 0.0
            except BadSubject:
                problem = errors.InvalidRequest("The model's id is too long for the bus.", param="model")
                patience = 0.0
            except QueueFull:
                problem = errors.QueueFull(flight.model)
                patience = patience if attempt > 1 else 0.0
            except BusError as error:
                log.warning("job.unpublished", job=flight.id, model=flight.model, attempt=attempt, error=str(error))
                problem = errors.Unavailable("The queue cannot be reached at the moment; retry in 5 s.")
            else:
                self.perform(flight.id, flight.on_published(attempt, seq, self.clock()))
                return
            if self.clock() >= patience or flight.attempt != attempt or flight.is_over:
                if posted is not None:
                    posted.drop()
                self.perform(flight.id, flight.on_publish_failed(attempt, problem, self.clock()))
                return
            await asyncio.sleep(AGAIN_S)

    async def _wait_for_turn(self, flight: Flight, attempt: int) -> bool:
        """Suspects run one after another, so that the one that kills replicas takes no other suspect along."""
        try:
            while flight.attempt == attempt and not flight.is_over:
                if self.suspects.may_run(flight, self.clock()):
                    return True
                await asyncio.sleep(SUSPECT_S)  # what it waits for is mostly time
            return False
        finally:
            self.suspects.waits_no_more(flight)

    async def _delete(self, seq: int) -> None:
        try:
            await self._bus.delete_message(names.JOBS, seq)
        except BusError as error:
            # The message will be delivered again, and the replica that gets it will be told to drop it.
            log.warning("job.undeleted", seq=seq, error=str(error))

    async def _replay(self, flight: Flight, action: AskReplay) -> None:
        request = encode(Replay(flight.id, action.attempt, action.positions))
        try:
            data = await self._bus.request(names.replica_rpc(action.replica), request, timeout_s=REPLAY_S)
            reply = _decode_replayed(data)
        except (BusError, msgspec.MsgspecError) as error:
            self.perform(flight.id, flight.on_replay_failed(action))
            if isinstance(error, NoResponders):
                self.on_refused(action.replica)
        else:
            self.perform(flight.id, flight.on_replayed(action, reply, self.clock()))

    def _next_turns(self, flight: Flight) -> None:
        """It does not wait in the queue any more: others may."""
        for one in [] if self._is_stopping else self.turns.leave(flight):
            self.perform(one.id, (Publish(one.attempt),))

    def _on_hold(self, flight: Flight) -> None:
        self._next_turns(flight)
        flight.observe_gap = self._metrics.gaps.of(flight.model, flight.worker).observe

    # --- the bus ---------------------------------------------------------------------------------------------

    def _on_batch(self, message: Msg) -> None:
        # Runs for every step of every replica: it must neither block nor wait.
        for job, actions in self.streams.on_batch(message.data, self.clock()):
            self.perform(job, actions)

    async def _on_rpc(self, message: Msg) -> None:
        try:
            request = _decode_rpc(message.data)
        except msgspec.MsgspecError as error:
            log.warning("rpc.undecodable", error=str(error))
            return
        if isinstance(request, Claim):
            flight = self.streams.flights.get(request.job)
            now = self.clock()
            answer = encode(flight.on_claim(request, now) if flight else Claimed(drop=True))
            log.info("job.claimed", job=request.job, replica=request.replica, attempt=request.attempt)
        else:
            answer = encode(Pong())
        if message.reply:
            await self._bus.publish(message.reply, answer)

    async def _send_notes(self) -> None:
        while True:
            await self._notes.wait()
            self._notes.clear()
            try:
                await self._flush_notes()
            except Exception:  # nobody else would send the next ones
                log.exception("notes.failed")

    async def _flush_notes(self) -> None:
        """Cancels and confirmations, one message a replica for all that came together."""
        notes: tuple[tuple[_Notes, type[Confirm] | type[Cancel]], ...]
        notes = ((self._confirms, Confirm), (self._cancels, Cancel))
        for jobs_of, kind in notes:
            while jobs_of:
                replica, jobs = jobs_of.popitem()
                try:
                    await self._bus.publish(names.replica_rpc(replica), encode(kind(jobs)))
                except BusError as error:
                    # A lost confirmation is asked for again; a lost cancel is said again.
                    log.warning("note.unsent", replica=replica, jobs=len(jobs), error=str(error))
