"""All jobs of a replica and everything that can happen to them. Pure: events in, `Effects` out, the time is passed in.

Every delivery that JetStream gives us is answered exactly once (`_answer`), whichever way its job ends.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec

from shared import messages
from shared.messages import (
    Accepted,
    Claimed,
    Embedded,
    Failed,
    FailureKind,
    Item,
    Job,
    Prompt,
    Replay,
    Replayed,
    Working,
)
from worker.front.choice import ChoiceRun
from worker.front.effects import ACK, NAK, PROGRESS, TERM, Effects
from worker.front.embedding import Inputs, vectors_since
from worker.front.errors import RankFault
from worker.front.request import Resolved
from worker.front.run import Run
from worker.protocol import Choice, Output, Refused, Sample, Step, Submit, Thinking
from worker.text.stream import TextStream

PROGRESS_S = 1.5  # of the consumer's ack_wait of 5 s
WORKING_S = 1.0
CONFIRM_S = 5.0
CONFIRM_GIVE_UP_S = 60.0
MAX_DELIVERIES = 4  # of a job that nobody supervises; the consumer's max_deliver is 6
REPLAY_S = 60.0
REPLAY_BYTES = 64 << 20
REPLAY_DELTA_TOKENS = 4096


class Texts(Protocol):
    """What the table needs of a model's text side."""

    def stream(self, prompt: Prompt, *, stop: list[str], prompt_ids: list[int]) -> TextStream: ...
    def token_text(self, id: int) -> str: ...
    def thinking(self, prompt: Prompt, budget: int, *, prompt_ids: list[int]) -> Thinking | None: ...


class JobTable:
    """The jobs of one replica, by id; of each job only the highest attempt that was seen."""

    def __init__(
        self,
        texts: Texts,
        *,
        max_reply_bytes: int,
        replay_bytes: int = REPLAY_BYTES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._texts = texts
        self._max_reply_bytes = max_reply_bytes
        self._replay_bytes = replay_bytes
        self._wall = wall  # deadlines are unix times of other hosts
        self._runs: dict[str, Run] = {}  # all
        self._open: dict[str, Run] = {}  # not closed
        self._by_key: dict[str, Run] = {}  # in the rank
        self._closed: OrderedDict[str, int] = OrderedDict()  # job id → bytes, oldest first
        self._closed_bytes = 0
        self.num_finished = 0  # jobs, ever

    # --- what there is ---------------------------------------------------------------------------------------

    def get(self, job: str) -> Run | None:
        """The run of this job, of whichever attempt."""
        return self._runs.get(job)

    @property
    def num_running(self) -> int:
        """Jobs that need the rank, now or soon."""
        return sum(run.is_active for run in self._open.values())

    @property
    def num_choices(self) -> int:
        """Choices that need the rank, now or soon: what fills slots."""
        return sum(run.num_slots for run in self._open.values() if run.is_active)

    @property
    def num_unconfirmed(self) -> int:
        """Jobs that are done but not confirmed."""
        return sum(run.state == "finished" for run in self._open.values())

    @property
    def has_work(self) -> bool:
        """Whether the rank has something to do."""
        return bool(self._by_key)

    def is_in_rank(self, key: str) -> bool:
        """Whether the rank has, or is about to get, the job of this key."""
        return key in self._by_key

    @property
    def kept_bytes(self) -> int:
        """What closed jobs cost."""
        return self._closed_bytes

    def of_reply(self, reply: str) -> list[Run]:
        """Jobs that still publish to this reply subject for an owner that counts."""
        return [run for run in self._open.values() if run.job.reply == reply and not run.adopted]

    # --- intake ----------------------------------------------------------------------------------------------

    def take(self, job: Job, ack: str, now: float, fx: Effects) -> Run | None:
        """A delivery. The new run, or None if this settles it:

        1. A job not known here is new.
        2. The same attempt still runs, or waits for its Confirm: only the way to answer is new.
        3. The same attempt is closed: the answer was lost, so answer again.
        4. A lower attempt is void.
        5. A higher attempt makes the one known here void.
        """
        known = self._runs.get(job.id)
        if known is not None:
            if job.attempt == known.job.attempt and known.state != "closed":  # 2
                known.ack, known.progress_at = ack, now
                fx.answers.append((ack, PROGRESS))
                return None
            if job.attempt == known.job.attempt:  # 3
                fx.answers.append((ack, known.answer))
                return None
            if job.attempt < known.job.attempt:  # 4
                fx.answers.append((ack, TERM))
                return None
            self.drop(known, TERM, fx)  # 5
        queue_s = max(0.0, self._wall() - job.published_s) if job.published_s else 0.0
        run = self._runs[job.id] = self._open[job.id] = Run(job, ack, now, queue_s)  # 1
        return run

    def renumber(self, run: Run, claimed: Claimed) -> None:
        """The owner lets us run a job that was delivered again, as this attempt."""
        run.job = msgspec.structs.replace(run.job, attempt=claimed.attempt, resume=claimed.resume)

    def accept(self, run: Run, resolved: Resolved, fingerprint: str, now: float, fx: Effects) -> None:
        """The job is sound: tell its owner, and run what is left of it. Call `prepare` once the rank has it."""
        job, sample = run.job, resolved.sample
        run.accepted = Accepted(job.id, job.attempt, len(resolved.prompt), fingerprint)
        fx.emit(job.reply, run.accepted)
        run.resolved = resolved
        wanted = self._resume(run, resolved, fx) if job.resume else [Choice(index) for index in range(job.sampling.n)]
        run.unfinished = len(wanted)
        run.state = "running"
        if not wanted:
            self._finish(run, now, fx)
            return
        self._by_key[run.key] = run
        fx.can_wait = True
        budget = job.sampling.thinking_budget
        thinking = None if budget is None else self._texts.thinking(job.prompt, budget, prompt_ids=resolved.prompt)
        fx.submits.append(
            Submit(
                key=run.key,
                thinking=thinking,
                prompt=resolved.prompt,
                images=resolved.images,
                choices=wanted,
                sample=sample,
                batch_class=job.job_class == "batch",
                grammar=resolved.grammar,
                owner=job.share or job.owner or "",
            )
        )

    def prepare(self, run: Run) -> None:
        """Make ready for its output. Apart from `accept`, so that the rank can begin meanwhile."""
        job, resolved, run.resolved = run.job, run.resolved, None
        if resolved is None:
            return
        stop_ids = frozenset(resolved.sample.stop_ids)
        for index in range(job.sampling.n):
            stream = self._texts.stream(job.prompt, stop=job.sampling.stop, prompt_ids=resolved.prompt)
            run.choices.append(ChoiceRun(job.id, job.attempt, index, stream, self._texts.token_text, stop_ids))
        run.forget_prompt()

    def _resume(self, run: Run, resolved: Resolved, fx: Effects) -> list[Choice]:
        """Take what an earlier attempt delivered as given, and return the choices that it did not end."""
        self.prepare(run)
        wanted = []
        for choice, resume in zip(run.choices, resolved.resume, strict=True):
            if resume.ids or resume.finish is not None:
                delta = choice.resume(resume.ids, resume.finish, resolved.sample.max_tokens)
                if delta is not None:
                    fx.emit(run.job.reply, delta)
            if choice.finish is None:
                wanted.append(Choice(choice.index, resume.ids))
        return wanted

    def accept_inputs(self, run: Run, inputs: Inputs, fingerprint: str, now: float, fx: Effects) -> None:
        """As `accept`, for an embedding."""
        job = run.job
        run.accepted = Accepted(job.id, job.attempt, inputs.num_tokens, fingerprint)
        fx.emit(job.reply, run.accepted)
        run.unfinished = len(inputs.wanted)
        run.forget_prompt()
        run.state = "running"
        if not inputs.wanted:
            self._finish(run, now, fx)
            return
        self._by_key[run.key] = run
        fx.can_wait = True
        fx.submits.append(
            Submit(
                key=run.key,
                prompt=[],
                inputs=inputs.ids,
                choices=[Choice(index) for index in inputs.wanted],
                sample=Sample(seed=0, max_tokens=1),
                batch_class=job.job_class == "batch",
                owner=job.share or job.owner or "",
            )
        )

    def fail(
        self,
        run: Run,
        kind: FailureKind,
        message: str,
        now: float,
        fx: Effects,
        param: str | None = None,
        *,
        tokens: int = 0,
        limit: int = 0,
    ) -> None:
        """The attempt ends without a result. What nobody supervises goes back to the queue where that may help."""
        # Nobody else counts the attempts of such a job: a poison would go round until the queue gives up on it, and
        # then stay there.
        is_last = kind == "replica_lost" and run.num_deliveries >= MAX_DELIVERIES
        if kind in ("replica_lost", "shutting_down") and not run.is_supervised and not is_last:
            self.drop(run, NAK, fx)
            return
        run.verdict = Failed(run.job.id, run.job.attempt, kind, message, param, tokens, limit)
        fx.emit(run.job.reply, run.verdict)
        self._close(run, TERM, now, fx)

    def drop(self, run: Run, answer: bytes, fx: Effects) -> None:
        """Forget the job, whatever its state, and say nothing to its owner."""
        if run.state == "closed":
            self._closed_bytes -= self._closed.pop(run.job.id)
        self._leave_rank(run, fx)
        self._answer(run, answer, fx)
        run.state = "closed"
        self._open.pop(run.job.id, None)
        del self._runs[run.job.id]

    # --- the rank --------------------------------------------------------------------------------------------

    def on_step(self, step: Step, now: float, fx: Effects) -> None:
        """Everything one step brought. Raises RankFault when it does not fit what came before."""
        by_key = self._by_key
        for output in step.outputs:
            run = by_key.get(output.key)
            if run is None:
                continue  # aborted after the rank began this step
            try:
                self._on_output(run, output, now, fx)
            except RankFault:
                raise
            except Exception as error:  # one answer that cannot be turned into text must not end all the others
                message = f"The output could not be turned into text: {type(error).__name__}: {error}"
                self.fail(run, "engine_error", message, now, fx)
        for prefilling in step.prefilling:
            run = by_key.get(prefilling.key)
            if run is not None:
                run.prefill_done, run.prefill_total = prefilling.done, prefilling.total
        for refused in step.refused:
            self._on_refused(refused, now, fx)

    def _on_vector(self, run: Run, output: Output, now: float, fx: Effects) -> None:
        if output.vector is None or output.choice in run.vectors:
            raise RankFault(f"{output.key} has no vector, or a second one, for input {output.choice}")
        run.first_token_at = run.first_token_at or now
        run.last_token_at = now
        run.vectors[output.choice] = output.vector
        fx.emit(run.job.reply, Embedded(run.job.id, run.job.attempt, output.choice, output.vector))
        run.unfinished -= 1
        if run.unfinished == 0:
            self._finish(run, now, fx)

    def _on_output(self, run: Run, output: Output, now: float, fx: Effects) -> None:
        if run.job.task == "embed":
            self._on_vector(run, output, now, fx)
            return
        if run.resolved is not None:
            self.prepare(run)
        if not 0 <= output.choice < len(run.choices):
            raise RankFault(f"{output.key} has no choice {output.choice}")
        choice = run.choices[output.choice]
        if choice.finish is not None:
            return  # a stop string ended it after the rank began this step
        if run.first_token_at == 0.0:
            run.first_token_at = now
        if choice.position == choice.transcript.start:
            run.note_cached(output.cached)
        delta = choice.advance(output)
        run.last_token_at = now
        fx.emit(run.job.reply, delta)
        if delta.finish is not None:
            if output.finish is None:
                fx.aborts.append((run.key, choice.index))
            run.unfinished -= 1
            if run.unfinished == 0:
                self._finish(run, now, fx)

    def _on_refused(self, refused: Refused, now: float, fx: Effects) -> None:
        run = self._by_key.pop(refused.key, None)
        if run is not None:
            self.fail(run, refused.kind, refused.message, now, fx)

    def rank_died(self, reason: str, now: float, fx: Effects) -> None:
        """Every job that needed the rank is lost here."""
        self._by_key.clear()
        for run in [run for run in self._open.values() if run.is_active]:
            self.fail(run, "replica_lost", reason, now, fx)

    # --- the owner -------------------------------------------------------------------------------------------

    def cancel(self, job: str, attempt: int, fx: Effects) -> None:
        """The owner wants no more of this attempt, or of any lower one."""
        run = self._runs.get(job)
        if run is not None and run.job.attempt <= attempt and run.state != "closed":
            self.drop(run, TERM, fx)

    def confirm(self, job: str, attempt: int, now: float, fx: Effects) -> None:
        """The owner has everything."""
        run = self._runs.get(job)
        if run is not None and run.job.attempt == attempt and run.state == "finished":
            self._close(run, ACK, now, fx)

    def owner_lost(self, run: Run, now: float, fx: Effects) -> None:
        """Nobody waits for this job any more: end it, or run it to its end if it asked for that."""
        if run.state == "closed":
            return
        if run.job.on_owner_lost == "drop":
            self.drop(run, TERM, fx)
        elif run.state == "finished":
            self._close(run, ACK, now, fx)
        else:
            run.adopted = True

    def replay(self, request: Replay) -> Replayed:
        """What was published of a job from the given positions on, in few items.

        An answer that would be too large ends early, without the verdict: the owner then sees a gap and asks again.
        """
        run = self._runs.get(request.job)
        if run is None or run.job.attempt != request.attempt:
            return Replayed(gone=True)
        items: list[Item] = [] if run.accepted is None else [run.accepted]
        room = self._max_reply_bytes
        vectors, is_all = vectors_since(run.job, run.vectors, request.positions, room)
        items += vectors
        if not is_all:
            return Replayed(items)
        for choice in run.choices:
            position = request.positions[choice.index] if choice.index < len(request.positions) else 0
            deltas = choice.transcript.since(run.job.id, run.job.attempt, choice.index, position, REPLAY_DELTA_TOKENS)
            if deltas is None:
                return Replayed(gone=True)
            for delta in deltas:
                room -= len(messages.encode(delta))
                if room < 0:
                    return Replayed(items)
                items.append(delta)
        if run.verdict is not None:
            items.append(run.verdict)
        return Replayed(items)

    # --- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float, fx: Effects) -> None:
        """Everything that time alone brings about; a few times a second."""
        for run in list(self._open.values()):
            if run.is_active and run.job.deadline_s and self._wall() >= run.job.deadline_s:
                self.fail(run, "deadline_exceeded", "The deadline of the job has passed.", now, fx)
                continue
            if now - run.progress_at >= PROGRESS_S:
                self.note_progress(run, now, fx)
            if run.is_active and run.first_token_at == 0.0 and now - run.working_at >= WORKING_S:
                self._emit_working(run, now, fx)
            if run.state == "finished":
                self._await_confirm(run, now, fx)
        while self._closed:
            oldest = self._runs[next(iter(self._closed))]
            if now - oldest.closed_at < REPLAY_S and self._closed_bytes <= self._replay_bytes:
                break
            self.drop(oldest, oldest.answer, fx)

    def note_progress(self, run: Run, now: float, fx: Effects) -> None:
        """Keep the queue from giving the job to somebody else."""
        run.progress_at = now
        if run.ack:
            fx.answers.append((run.ack, PROGRESS))

    def progress_all(self, now: float, fx: Effects) -> None:
        """As `note_progress` for every open job, after the queue was out of reach."""
        for run in self._open.values():
            self.note_progress(run, now, fx)

    def close_all(self, now: float, fx: Effects, *, broken: str = "") -> None:
        """The front goes: hand back what runs, answer what is done. `broken`: why, if it does not go in order."""
        kind: FailureKind = "replica_lost" if broken else "shutting_down"
        for run in list(self._open.values()):
            if run.is_active:
                self.fail(run, kind, broken or "The replica is shutting down.", now, fx)
            elif run.state == "finished":
                self._close(run, ACK, now, fx)

    # --- endings ---------------------------------------------------------------------------------------------

    def _emit_working(self, run: Run, now: float, fx: Effects) -> None:
        run.working_at = now
        phase = "prefill" if run.prefill_total else "queued"
        total = run.prefill_total or (run.accepted.prompt_tokens if run.accepted else 0)
        fx.emit(run.job.reply, Working(run.job.id, run.job.attempt, phase, run.prefill_done, total))

    def _await_confirm(self, run: Run, now: float, fx: Effects) -> None:
        if now - run.finished_at >= CONFIRM_GIVE_UP_S:
            self._close(run, ACK, now, fx)
        elif now - run.done_at >= CONFIRM_S and run.verdict is not None:
            run.done_at = now
            fx.emit(run.job.reply, run.verdict)

    def _finish(self, run: Run, now: float, fx: Effects) -> None:
        self._by_key.pop(run.key, None)
        self.num_finished += 1
        run.verdict = run.done()
        run.finished_at = run.done_at = now
        fx.emit(run.job.reply, run.verdict)
        if run.is_supervised:
            run.state = "finished"
        else:
            self._close(run, ACK, now, fx)

    def _close(self, run: Run, answer: bytes, now: float, fx: Effects) -> None:
        self._leave_rank(run, fx)
        self._answer(run, answer, fx)
        run.state = "closed"
        run.closed_at = now
        run.forget_prompt()
        del self._open[run.job.id]
        self._closed[run.job.id] = run.size_bytes
        self._closed_bytes += run.size_bytes

    def _leave_rank(self, run: Run, fx: Effects) -> None:
        if self._by_key.pop(run.key, None) is not None:
            fx.aborts.append((run.key, -1))

    def _answer(self, run: Run, answer: bytes, fx: Effects) -> None:
        if run.ack:
            fx.answers.append((run.ack, answer))
            run.answer, run.ack = answer, ""
