"""From a message of the queue to a job that runs, or that is answered."""

import asyncio
import functools
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Protocol

import msgspec

from shared import messages
from shared.errors import BusError, BusUnavailable
from shared.log import get
from shared.messages import Claim, Claimed, Constraint, Job, Prompt, no_sight
from worker.front import delivery
from worker.front.delivery import Delivery
from worker.front.effects import TERM, Effects
from worker.front.embedding import place, resolve_inputs
from worker.front.errors import Unservable
from worker.front.jobs import JobTable
from worker.front.request import Limits, reserve, resolve, too_long
from worker.front.run import Run
from worker.protocol import Image
from worker.text.conversation import image_parts
from worker.text.errors import NoSight, PromptError, PromptTooLong
from worker.text.grammar import is_constrained
from worker.text.sight import Reading

log = get(__name__)

THREAD_BYTES = 8 << 10  # of a job message; below, tokenising costs less than a millisecond
CLAIM_S = 4.0
CLAIM_ANSWER_S = 0.5
CLAIM_PAUSE_S = 0.25

MAX_ADDRESS = 1024  # the reply subject is sent twice with every batch, and the server's command line is bounded

_SUBJECT = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*")
_decode_job = msgspec.json.Decoder(Job).decode
_decode_claimed = msgspec.json.Decoder(Claimed).decode


class RequestBus(Protocol):
    """What intake needs of the bus."""

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes: ...


class Encoder(Protocol):
    """What intake needs of a model's text side."""

    def encode(self, prompt: Prompt, *, limit: int | None = None, reserve: int = 1) -> list[int]: ...
    def read(self, prompt: Prompt, *, limit: int | None = None, reserve: int = 1) -> Reading: ...
    def constrain(self, prompt: Prompt, constraint: Constraint | None, prompt_ids: list[int]) -> Future[str] | None: ...


class Ready(Protocol):
    """What a ready rank can do."""

    @property
    def limits(self) -> Limits: ...
    @property
    def fingerprint(self) -> str: ...


class Intake:
    """Takes jobs in. `apply` carries out effects; `ready` is what the rank can do, None while it can do nothing."""

    def __init__(
        self,
        *,
        replica: str,
        model: str,
        task: str = "generate",
        bus: RequestBus,
        table: JobTable,
        text: Encoder,
        apply: Callable[[Effects], None],
        ready: Callable[[], Ready | None],
        executor: Executor,
        image_executor: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`image_executor` reads prompts with images, which take longer than others; None: `executor` does."""
        self._replica = replica
        self._model = model
        self._task = task
        self._bus = bus
        self._table = table
        self._text = text
        self._apply = apply
        self._ready = ready
        self._executor = executor
        self._image_executor = image_executor or executor
        self._clock = clock

    def begin(self, payload: bytes, ack: str, fx: Effects) -> tuple[Run, Delivery] | None:
        """The first part, at once, so that the job counts from now on: a run and its delivery.

        1. What is no job is deleted from the queue.
        2. What the table knows is settled there.
        """
        try:
            job = _decode_job(payload)
            given = delivery.parse(ack)
            _check_addresses(job)
        except ValueError as error:  # 1
            log.warning("job.unreadable", error=str(error))
            fx.answers.append((ack, TERM))
            return None
        run = self._table.take(job, given.ack, self._clock(), fx)  # 2
        if run is None:
            return None
        run.num_deliveries = given.count
        return run, given

    def is_short(self, delivery_count: int, size_bytes: int, job: Job) -> bool:
        """Whether `finish` waits for nobody: there is no claim to make, little text, no image and no grammar."""
        return (
            delivery_count == 1
            and size_bytes < THREAD_BYTES
            and not is_constrained(job.prompt, job.constraint)
            and not image_parts(job.prompt.messages or [])
        )

    async def finish(self, run: Run, delivery_count: int, size_bytes: int) -> None:
        """The second part: until the job is in the rank, or over.

        3. A job of another model, or past its deadline, fails.
        4. A job that was delivered before may run elsewhere: its owner decides.
        5. Text becomes ids, away from the event loop if there is much of it; what the answer must match, a grammar.
        6. Limits are checked against what the rank can do now.
        7. It is accepted and handed to the rank.

        Between the awaits anything may happen to the run, so it goes on only while it is still `taken`.
        """
        try:
            self._check_job(run.job)  # 3
            if delivery_count > 1 and not await self._claim(run):  # 4
                return
            ids, images = await self._encode_all(run.job, size_bytes)  # 5
            grammar = await self._constrain(run.job, ids[0]) if self._task == "generate" else ""
            self._hand_over(run, ids, grammar, images)
        except Exception as error:
            self._refuse(run, error)

    def finish_at_once(self, run: Run) -> None:
        """`finish` for a job that `is_short`: there is nothing to wait for, so it needs no task."""
        try:
            self._check_job(run.job)  # 3
            self._hand_over(run, self._encode_now(run.job), "", [])  # 5
        except Exception as error:
            self._refuse(run, error)

    def _hand_over(self, run: Run, ids: list[list[int]], grammar: str, images: list[Image]) -> None:
        fx = Effects()
        ready = self._ready()
        if not _is_taken(run):
            return
        if ready is None:
            self._table.fail(run, "replica_lost", "The rank ended before the job began.", self._clock(), fx)
        elif self._task == "embed":
            inputs = resolve_inputs(run.job, ids, ready.limits)  # 6
            self._table.accept_inputs(run, inputs, ready.fingerprint, self._clock(), fx)  # 7
        else:
            resolved = resolve(run.job, ids[0], ready.limits, grammar, images)  # 6
            self._table.accept(run, resolved, ready.fingerprint, self._clock(), fx)  # 7
        self._apply(fx)
        self._table.prepare(run)  # while the rank computes

    def _refuse(self, run: Run, error: Exception) -> None:
        """What went wrong before it ran, as its client shall read it."""
        match error:
            case Unservable():
                self._fail(run, error)
            case NoSight():
                self._fail(run, Unservable("invalid_request", no_sight(self._model, error.param), error.param))
            case PromptError():
                self._fail(run, Unservable("invalid_request", error.message, error.param))
            case _:
                name = f"{type(error).__name__}: {error}"
                log.error("job.intake_failed", job=run.job.id, model=self._model, error=name)
                self._fail(run, Unservable("engine_error", f"The request could not be prepared: {error}"))

    def _check_job(self, job: Job) -> None:
        if job.model != self._model:
            raise Unservable("model_not_found", f"This replica serves {self._model}, not {job.model}.", "model")
        if job.task != self._task:
            raise Unservable("invalid_request", f"{self._model} is not made for the task {job.task}.", "model")
        if job.deadline_s and time.time() >= job.deadline_s:
            raise Unservable("deadline_exceeded", "The deadline of the job passed before it was begun.")

    async def _claim(self, run: Run) -> bool:
        """Whether the run may go on. Settles it if not.

        Nobody there for a while: the job asked to be dropped then, or to be run all the same.
        """
        job = run.job
        if job.owner is None:
            return True
        payload = messages.encode(Claim(job.id, job.attempt, self._replica))
        until = self._clock() + CLAIM_S
        fx = Effects()
        while self._clock() < until and _is_taken(run):
            try:
                claimed = _decode_claimed(await self._bus.request(job.owner, payload, timeout_s=CLAIM_ANSWER_S))
            except BusError as error:
                if isinstance(error, BusUnavailable):
                    until = self._clock() + CLAIM_S  # it is us who are cut off
                self._table.note_progress(run, self._clock(), fx)
                self._apply(fx)
                fx = Effects()
                await asyncio.sleep(CLAIM_PAUSE_S)
                continue
            if not _is_taken(run):
                return False
            if not claimed.drop:
                self._table.renumber(run, claimed)
                return True
            self._table.drop(run, TERM, fx)
            self._apply(fx)
            return False
        if not _is_taken(run):
            return False
        self._table.owner_lost(run, self._clock(), fx)
        self._apply(fx)
        return run.adopted

    async def _encode_all(self, job: Job, size_bytes: int) -> tuple[list[list[int]], list[Image]]:
        """The tokens of each prompt, and the images among them. Raises PromptError and Unservable."""
        if self._task == "generate" and image_parts(job.prompt.messages or []):
            return await self._look(job)
        if size_bytes < THREAD_BYTES:
            return self._encode_now(job), []
        loop = asyncio.get_running_loop()
        encodings = [functools.partial(self._encode, job, index) for index in range(self._num_prompts(job))]
        return [await loop.run_in_executor(self._executor, encode) for encode in encodings], []

    async def _look(self, job: Job) -> tuple[list[list[int]], list[Image]]:
        """The same of a prompt with images, away from the event loop: a small file may be a large image."""
        limit, reserved = self._room(job)
        read = functools.partial(self._text.read, job.prompt, limit=limit, reserve=reserved)
        try:
            reading = await asyncio.get_running_loop().run_in_executor(self._image_executor, read)
        except PromptTooLong as error:
            raise too_long(error.tokens, error.limit, error.param) from error
        images = [Image(one.data, one.digest, one.grid, one.runs) for one in reading.images]
        return [reading.ids], images

    def _room(self, job: Job) -> tuple[int | None, int]:
        """Tokens of the context, as far as it is known, and those of them that are for the answer."""
        ready = self._ready()
        limit = None if ready is None else ready.limits.context_limit
        return limit, reserve(job.sampling, limit) if limit else 1

    def _num_prompts(self, job: Job) -> int:
        return 1 if self._task == "generate" else len(job.inputs)

    def _encode_now(self, job: Job) -> list[list[int]]:
        return [self._encode(job, index) for index in range(self._num_prompts(job))]

    def _encode(self, job: Job, index: int) -> list[int]:
        """The tokens of one prompt. Raises PromptError, and Unservable that names it if it is far too long."""
        is_input = self._task == "embed"
        prompt = job.inputs[index] if is_input else job.prompt
        if prompt.ids is not None:
            return prompt.ids
        limit, reserved = self._room(job)
        try:
            return self._text.encode(prompt, limit=limit, reserve=reserved)
        except PromptTooLong as error:
            if not is_input:
                raise too_long(error.tokens, error.limit, error.param) from error
            where = place(index, len(job.inputs))
            raise too_long(error.tokens, error.limit, where, f"{where} has") from error

    async def _constrain(self, job: Job, ids: list[int]) -> str:
        constrained = self._text.constrain(job.prompt, job.constraint, ids)
        return "" if constrained is None else await asyncio.wrap_future(constrained)

    def _fail(self, run: Run, error: Unservable) -> None:
        if not run.is_active:
            return
        fx = Effects()
        now, length = self._clock(), {"tokens": error.tokens, "limit": error.limit}
        self._table.fail(run, error.kind, error.message, now, fx, error.param, **length)
        self._apply(fx)


def _check_addresses(job: Job) -> None:
    """Subjects that come from outside must be plain ones. Raises ValueError."""
    for what, subject in (("reply", job.reply), ("owner", job.owner)):
        if subject is not None and (len(subject.encode()) > MAX_ADDRESS or not _SUBJECT.fullmatch(subject)):
            raise ValueError(f"job {job.id}: {what} {subject[:120]!r} is no subject")


def _is_taken(run: Run) -> bool:
    """Whether the run is still ours to bring on its way: while we waited, anything may have happened to it."""
    return run.state == "taken"
