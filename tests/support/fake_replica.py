"""A replica without a model: pulls jobs and speaks the replica's protocol, token i being the text `` ti``.

It is scripted from the test: how far it may go, what it answers instead of tokens, which of its messages get lost.
One loop steps all its jobs together, and each step is one message per reply subject, as with a real one.
"""

import asyncio
import contextlib
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import msgspec

from shared import messages, names
from shared.broker import EmbeddedBroker
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError
from shared.kv import Bucket
from shared.messages import (
    Accepted,
    Cancel,
    Claim,
    Claimed,
    Confirm,
    Delta,
    DeltaBatch,
    Done,
    Embedded,
    Extra,
    Failed,
    FailureKind,
    Item,
    Job,
    Ping,
    Pong,
    Replay,
    Replayed,
    ReplicaRequest,
    ResumeChoice,
    Timings,
    Usage,
)
from shared.names import JobClass
from shared.records import ReplicaRecord

PROMPT_TOKENS = 7
Failure = tuple[FailureKind, str, str | None]  # kind, message, param
Piece = tuple[str, Extra | None, str | None]  # text, extra and finish reason of a token

_decode_job = msgspec.json.Decoder(Job).decode
_decode_request = msgspec.json.Decoder(ReplicaRequest).decode
_decode_claimed = msgspec.json.Decoder(Claimed).decode


def text_of(start: int, stop: int) -> str:
    """The text of tokens [start, stop)."""
    return "".join(f" t{index}" for index in range(start, stop))


def vector_of(index: int) -> bytes:
    """The vector of an input: four dimensions, length 1."""
    return struct.pack("<4f", 0.5, -0.5, 0.5 if index % 2 else -0.5, 0.5)


class _Run:
    def __init__(self, job: Job, ack: str) -> None:
        self.job = job
        self.ack = ack
        self.attempt = job.attempt
        resume = job.resume or [ResumeChoice([]) for _ in range(len(job.inputs) or job.sampling.n)]
        self.positions = [len(one.ids) for one in resume]
        self.limit = 1 if job.inputs else job.sampling.max_tokens or 8
        self.pieces: Sequence[Piece] = ()
        self.items: list[Item] = []  # what was published, or should have been
        self.is_done = False


class FakeReplica:
    """Make it with `start`, end it with `close` (in order) or `die` (without a word)."""

    def __init__(self, bus: Bus, model: str, worker: str, pace_s: float, job_class: JobClass = "interactive") -> None:
        self.id = names.new_id()
        self.model = model
        self.worker = worker
        self.bus = bus
        self.pace_s = pace_s
        self.job_class: JobClass = job_class
        self.received: list[Job] = []
        self.cancelled: list[tuple[str, int]] = []
        self.confirmed: list[tuple[str, int]] = []
        self.claims: list[Claimed] = []
        self.replays: list[Replay] = []
        self.runs: dict[str, _Run] = {}
        self.finished: dict[str, _Run] = {}
        self.is_answering = True  # to pings and everything else
        self.pong = Pong()
        self.limit: int | None = None  # tokens of each choice before it pauses; None: to the end
        self.failure: Failure | None = None  # instead of accepting
        self.script: Callable[[Job], Sequence[Piece]] | None = None  # in place of `` t0 t1 …``; the last one finishes
        self.loses: Callable[[Item], bool] = lambda item: False  # items that never arrive
        self.ignores: Callable[[Job], bool] = lambda job: False  # jobs taken without a word
        self._tasks: list[asyncio.Task[None]] = []
        self._pulling: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._moved = asyncio.Event()

    @classmethod
    async def start(
        cls,
        broker: EmbeddedBroker,
        model: str,
        *,
        worker: str = "w1",
        pace_s: float = 0.002,
        failure: Failure | None = None,
        job_class: JobClass = "interactive",
    ) -> Self:
        """A replica that pulls, and whose record is in the fleet."""
        ident = names.new_id()
        bus = await Bus.connect(broker.bus_settings("worker"), kind="replica", ident=ident)
        replica = cls(bus, model, worker, pace_s, job_class)
        replica.id = ident
        replica.failure = failure
        await bus.subscribe(names.replica_rpc(replica.id), replica._on_rpc)
        await bus.flush()
        record = ReplicaRecord(id=replica.id, model=model, worker=worker, state="ready", context_limit=4096, load_s=1.5)
        await Bucket(bus, names.FLEET).put(names.replica_key(replica.id), messages.encode(record), ttl_s=600)
        replica._tasks = [asyncio.create_task(replica._steps())]
        await replica.take()
        return replica

    async def take(self) -> None:
        """Pull jobs."""
        self._inbox = self.bus.new_inbox()
        self._subscription = await self.bus.subscribe(self._inbox, self._on_pull)
        self._pulling = asyncio.create_task(self._pull())

    async def take_no_more(self) -> None:
        """Stop pulling; the server drops the standing request with its inbox."""
        if self._pulling is not None and self._subscription is not None:
            self._pulling.cancel()
            await asyncio.gather(self._pulling, return_exceptions=True)
            await self._subscription.unsubscribe()
            await self.bus.flush()
            self._pulling = None

    async def close(self) -> None:
        """End in order. May be called twice, and after `die`."""
        if self._pulling is not None:
            self._tasks.append(self._pulling)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()

    die = close  # a closed connection is all that a gateway sees of either

    def go(self, limit: int | None = None) -> None:
        """Go on to `limit` tokens of each choice; None: to the end."""
        self.limit = limit
        self._moved.set()

    # --- jobs in ---------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        request = {"batch": 1, "expires": 500_000_000, "group": names.PRIORITY_GROUP, "priority": 0}
        while True:
            with contextlib.suppress(BusError):
                subject = names.pull_subject(self.model, self.job_class)
                await self.bus.publish(subject, msgspec.json.encode(request), reply=self._inbox)
            self._taken = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._taken.wait()

    async def _on_pull(self, message: Msg) -> None:
        status = (message.headers or {}).get(names.STATUS)
        if status is not None:
            if status == "503":  # the gateway makes the queue with the model, or with its first job
                await asyncio.sleep(0.02)
            self._taken.set()
            return
        self._taken.set()
        job = _decode_job(message.data)
        self.received.append(job)
        if self.ignores(job):
            return
        is_again = int(message.reply.split(".")[4]) > 1
        self._tasks.append(asyncio.create_task(self._begin(job, message.reply, is_again)))

    async def _begin(self, job: Job, ack: str, is_again: bool) -> None:
        if is_again and job.owner is not None:
            claim = messages.encode(Claim(job.id, job.attempt, self.id))
            claimed = _decode_claimed(await self.bus.request(job.owner, claim, timeout_s=1.0))
            self.claims.append(claimed)
            if claimed.drop:
                await self.bus.publish(ack, b"+TERM")
                return
            job = msgspec.structs.replace(job, attempt=claimed.attempt, resume=claimed.resume)
        if self.failure is not None:
            kind, text, param = self.failure
            await self._publish(job.reply, [Failed(job.id, job.attempt, kind, text, param)])
            await self.bus.publish(ack, b"+TERM")
            return
        run = _Run(job, ack)
        if self.script is not None and not job.inputs:
            run.pieces = self.script(job)
            run.limit = len(run.pieces)
        run.items.append(Accepted(job.id, run.attempt, PROMPT_TOKENS, "fake-fingerprint"))
        self.runs[job.id] = run
        await self._publish(job.reply, list(run.items))
        self._moved.set()

    # --- tokens out ------------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        while True:
            if not any(self._can_step(run) for run in self.runs.values()):
                self._moved.clear()
                await self._moved.wait()
            batches: defaultdict[str, list[Item]] = defaultdict(list)
            for run in list(self.runs.values()):
                if self._can_step(run):
                    items = self._step(run)
                    run.items += items
                    batches[run.job.reply] += items
            for reply, items in batches.items():
                with contextlib.suppress(BusError):
                    await self._publish(reply, items)
            await asyncio.sleep(self.pace_s)

    def _can_step(self, run: _Run) -> bool:
        return self.is_answering and not run.is_done and (self.limit is None or min(run.positions) < self.limit)

    def _step(self, run: _Run) -> list[Item]:
        items: list[Item] = []
        for choice, position in enumerate(run.positions):
            if position < run.limit:
                items.append(self._item(run, choice, position))
                run.positions[choice] += 1
        if all(position >= run.limit for position in run.positions):
            run.is_done = True
            self.finished[run.job.id] = self.runs.pop(run.job.id)
            usage = Usage(PROMPT_TOKENS, sum(run.positions), cached_tokens=3)
            items.append(Done(run.job.id, run.attempt, usage, Timings(0.1, 0.2, 0.3)))
        return items

    def _item(self, run: _Run, choice: int, position: int) -> Item:
        if run.job.inputs:
            return Embedded(run.job.id, run.attempt, choice, vector_of(choice))
        finish = "length" if position + 1 == run.limit else None
        text, extra = text_of(position, position + 1), None
        if run.pieces:
            text, extra, finish = run.pieces[position]
        return Delta(run.job.id, run.attempt, choice, position, [position], text, finish, extra)

    async def _publish(self, reply: str, items: list[Item]) -> None:
        kept = [item for item in items if not self.loses(item)]
        if kept:
            batch = DeltaBatch(messages.VERSION, self.id, self.worker, kept)
            await self.bus.publish(reply, messages.encode(batch), reply=names.no_responders(self.id, reply))

    async def say(self, reply: str, items: list[Item]) -> None:
        """Publish anything at all."""
        await self._publish(reply, items)

    # --- rpc -------------------------------------------------------------------------------------------------

    async def _on_rpc(self, message: Msg) -> None:
        if not self.is_answering:
            return
        request: Any = _decode_request(message.data)
        answers: dict[type[Any], Callable[[Any], Awaitable[bytes | None]]] = {
            Ping: self._ping,
            Cancel: self._cancel,
            Confirm: self._confirm,
            Replay: self._replay,
        }
        answer = await answers[type(request)](request)
        if answer is not None and message.reply:
            await self.bus.publish(message.reply, answer)

    async def _ping(self, request: Ping) -> bytes:
        return messages.encode(self.pong)

    async def _cancel(self, request: Cancel) -> None:
        self.cancelled += request.jobs
        for job, attempt in request.jobs:
            run = self.runs.get(job)
            if run is not None and run.attempt <= attempt:
                del self.runs[job]
                await self.bus.publish(run.ack, b"+TERM")

    async def _confirm(self, request: Confirm) -> None:
        self.confirmed += request.jobs
        for job, _ in request.jobs:
            if run := self.finished.get(job):
                await self.bus.publish(run.ack, b"+ACK")

    async def _replay(self, request: Replay) -> bytes:
        self.replays.append(request)
        run = self.runs.get(request.job) or self.finished.get(request.job)
        if run is None or run.attempt != request.attempt:
            return messages.encode(Replayed(gone=True))
        items = [
            item
            for item in run.items
            if not (isinstance(item, Delta) and item.start < request.positions[item.choice])
            and not (isinstance(item, Embedded) and request.positions[item.choice])
        ]
        return messages.encode(Replayed(items))
