"""The serving loop. `step` is three verbs: schedule, run, postprocess."""

import itertools
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sequence_
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Literal, Protocol

from shared import log
from worker.engine.admission import Limits, refusal
from worker.engine.cache_space import CacheSpace, WindowCap
from worker.engine.draft_model import DraftModel, DraftRunner
from worker.engine.errors import GrammarRefused, OutOfMemory
from worker.engine.grammar import Grammars, Matcher
from worker.engine.guard import Guard
from worker.engine.pace import Pace
from worker.engine.plan import Row, Sampled, StepPlan, Transfer
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.speculation import Speculation, judge
from worker.engine.vision.opening import Opening
from worker.engine.vision.visual import Glance, Visual
from worker.protocol import Output, Prefilling, Refused, Step, Submit
from worker.stamp import Stamp

_PREFILLING_PERIOD_S = 1.0
_OPENING_WAIT_S = 0.02
_log = log.get(__name__)


class Runner(Protocol):
    """Computes plans. `worker.engine.runner.TorchRunner` is the real one."""

    vocab_size: int

    def run(self, plan: StepPlan) -> list[Sampled]:
        """One token for each kept position of the rows, in order. Running a plan again gives the same.

        Raises:
            DeviceLost: no plan can run any more.
            OutOfMemory: the plan may be too large.
            Exception: anything else means that one of the rows cannot be computed.
        """
        ...

    def transfer(self, transfers: Sequence_[Transfer]) -> None:
        """Move blocks, one after the other. What goes wrong here is no single job's fault."""
        ...


class Sight(Protocol):
    """Makes jobs' images ready. `worker.engine.vision.sight.Sight` is the real one."""

    def open(self, job: Submit) -> Future[Any]:
        """Begin with a job's images; what comes of it is for `visual`."""
        ...

    def visual(self, job: Submit, ready: Any) -> Visual:
        """The job's images, once they are ready."""
        ...

    def glance(self) -> Glance:
        """What the next step may see for the first time."""
        ...

    def num_unseen(self, rows: Iterable[Row]) -> int:
        """Tokens of images that these rows see for the first time."""
        ...

    def predict_s(self, num_tokens: int) -> float:
        """Seconds that so many tokens of images should take, beside what they take as tokens."""
        ...


class Engine:
    """One model's jobs, from `submit` to the outputs of `step`. Not for use by several threads.

    Args:
        runner: computes the plans.
        num_blocks, block_tokens: size of the runner's cache.
        cap: layers with a sliding window have fewer blocks; None: as many as the others.
        num_host_blocks: blocks in the runner's second tier, of each kind of layers.
        speculate: guess tokens ahead where it pays.
        draft: a small model of the same vocabulary to ask for guesses, and the tokens that it can read; its cache has
            the runner's blocks.
        grammars: holds outputs to what their jobs ask; None: jobs that ask for it are refused.
        sight: makes images ready; None: jobs with images are refused.
        slots: sequences (choices) that run at once.
        prefill_tokens: tokens of one step, decode rows included.
        context_limit: tokens of prompt and output that one sequence may have.
        stamp: tells others the phase; None: nobody asks.
        max_waiting: sequences that may wait; jobs beyond are refused.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        num_blocks: int,
        block_tokens: int,
        slots: int,
        prefill_tokens: int,
        context_limit: int,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
        speculate: bool = True,
        draft: tuple[DraftRunner, int] | None = None,
        grammars: Grammars | None = None,
        sight: Sight | None = None,
        stamp: Stamp | None = None,
        max_waiting: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._pace = Pace()
        self._space = CacheSpace(num_blocks, block_tokens, cap=cap, num_host_blocks=num_host_blocks)
        model: DraftModel | None = None
        if draft and speculate:
            small, readable = draft
            model = DraftModel(
                small, block_tokens=block_tokens, vocab_size=runner.vocab_size, context_limit=readable, clock=clock
            )
        self._scheduler = Scheduler(
            self._space,
            slots=slots,
            step_tokens=prefill_tokens,
            pace=self._pace,
            speculation=Speculation(self._pace, model) if speculate else None,
            glance=sight.glance if sight else None,
        )
        self._sight = sight
        self._guard = Guard(lambda plan: runner.run(plan), max(prefill_tokens, slots + 1))
        self._limits = Limits(runner.vocab_size, context_limit, num_blocks * block_tokens)
        self._stamp = stamp
        self._max_waiting = max_waiting
        self._clock = clock
        self._arrivals = itertools.count()
        self._num_steps = 0
        self._report = Step()
        self._grammars = grammars
        self._opening: list[Opening] = []  # jobs whose grammars or images are being made ready
        self._told: dict[str, float] = {}  # when each key's prefill was last reported

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or report anything."""
        scheduler = self._scheduler
        report = self._report
        return bool(scheduler.num_running or scheduler.num_waiting or self._opening or report.outputs or report.refused)

    def submit(self, job: Submit) -> None:
        """Take a job in. What cannot run comes out of the next step as Refused.

        A key that is running already ends that job too: its two owners cannot be told apart.
        """
        refused = refusal(job, self._limits)
        num_waiting, is_known = self._scheduler.num_waiting, self._scheduler.has_job(job.key)
        for one in self._opening:
            num_waiting += len(one.job.choices)
            is_known = is_known or one.job.key == job.key
        if not refused and is_known:
            refused = Refused(job.key, "invalid_request", "A job of this key was running already; both have ended.")
        if not refused and num_waiting + len(job.choices) > self._max_waiting:
            refused = Refused(job.key, "capacity", f"More than {self._max_waiting} sequences would be waiting.")
        if refused:
            self._refuse(refused)
            return
        if not job.grammar and not job.images:
            self._add(job, itertools.repeat(None))
        elif job.grammar and self._grammars is None:
            self._refuse(Refused(job.key, "invalid_request", "This replica's engine takes no constraints."))
        elif job.images and self._sight is None:
            self._refuse(Refused(job.key, "invalid_request", "This replica's engine takes no images."))
        else:
            grammar = self._grammars.open(job) if self._grammars and job.grammar else None
            images = self._sight.open(job) if self._sight and job.images else None
            self._opening.append(Opening(job, grammar, images))

    def _add(self, job: Submit, matchers: Iterable[Matcher | None], visual: Visual | None = None) -> None:
        arrival = next(self._arrivals)
        for choice, matcher in zip(job.choices, matchers, strict=False):
            sequence = Sequence(
                job,
                choice,
                arrival=arrival,
                context_limit=self._limits.context_limit,
                block_tokens=self._space.block_tokens,
            )
            sequence.grammar = matcher
            sequence.visual = visual
            reason = _finish(sequence)
            if not reason:
                sequence.unreported = _force(sequence)
                reason = _finish(sequence)
            if reason:  # its resume prefix was all there is to it
                ids = sequence.unreported
                self._report.outputs.append(Output(job.key, choice.index, sequence.num_output - len(ids), ids, reason))
            else:
                self._scheduler.add(sequence)

    def _add_opened(self) -> None:
        """Take in the jobs whose grammars and images are ready. With nothing else to do, wait for one a moment."""
        if not self._opening:
            return
        scheduler = self._scheduler
        is_idle = not (scheduler.num_running or scheduler.num_waiting or self._report.outputs or self._report.refused)
        waits = [future for one in self._opening for future in one.futures if not future.done()]
        if is_idle and waits:
            wait(waits, _OPENING_WAIT_S, FIRST_COMPLETED)
        opening, self._opening = self._opening, []
        for one in opening:
            if not one.is_done:
                self._opening.append(one)
                continue
            job = one.job
            try:
                visual = None
                if self._sight and one.images:
                    visual = self._sight.visual(job, one.images.result())
                self._add(job, one.grammar.result() if one.grammar else itertools.repeat(None), visual)
            except GrammarRefused as error:
                self._refuse(Refused(job.key, "invalid_request", str(error)))
            except Exception as error:
                _log.exception("engine.opening_failed", key=job.key)
                self._refuse(Refused(job.key, "engine_error", f"{type(error).__name__}: {error}"))

    def abort(self, choices: Iterable[tuple[str, int]]) -> None:
        """Drop these (key, choice), -1 for all choices, in whatever phase; nothing more is reported of them."""
        for key, choice in choices:
            if choice == -1:
                self._forget_opening(key)
            self._scheduler.abort(key, choice)
            report = self._report
            report.outputs = [out for out in report.outputs if out.key != key or choice not in (-1, out.choice)]
            self._forget(key)

    def _forget_opening(self, key: str) -> None:
        for one in self._opening:
            if one.job.key == key:
                one.cancel()
        self._opening = [one for one in self._opening if one.job.key != key]

    def step(self) -> Step:
        """Compute the next step and return all that happened since the last one."""
        self._add_opened()
        plan = self._scheduler.schedule(self._guard.step_tokens)
        if plan.rows:
            self._run(plan)
        report, self._report = self._report, Step()
        report.running, report.waiting = self._scheduler.num_running, self._scheduler.num_waiting
        report.blocks_free = self._space.num_free
        if self._stamp and not self.has_work:
            self._stamp.write(self._num_steps, "idle")
        return report

    def _run(self, plan: StepPlan) -> None:
        self._write_stamp(plan)
        num_attempts, num_tokens = self._num_steps, plan.num_tokens
        num_decoding, num_drafts = len(plan.rows), 0
        if num_tokens > num_decoding:
            num_decoding, num_drafts = plan.num_decoding, plan.num_drafts
        has_unseen = bool(self._sight and self._sight.num_unseen(plan.rows))
        started = self._clock()
        if plan.transfers:
            self._runner.transfer(plan.transfers)
        results = self._guard.run(plan, self._write_stamp)
        if self._num_steps == num_attempts and not plan.transfers and not has_unseen:
            self._pace.learn(num_tokens, self._clock() - started, num_decoding=num_decoding, num_drafts=num_drafts)
        for row, result in results:
            if isinstance(result, Exception):
                self._fail(row, result)
            elif row.sequence.is_running:  # else another choice of its job failed in this step
                self._postprocess(row, result)

    def _fail(self, row: Row, error: Exception) -> None:
        key = row.sequence.key
        _log.error("engine.row_failed", key=key, exc_info=error)
        is_memory = isinstance(error, OutOfMemory)
        kind: Literal["capacity", "engine_error"] = "capacity" if is_memory else "engine_error"
        self._refuse(Refused(key, kind, f"{type(error).__name__}: {error}"))

    def _postprocess(self, row: Row, sampled: list[Sampled]) -> None:
        sequence = row.sequence
        if not sampled:
            self._scheduler.commit(row, row.stop)
            self._tell_prefilling(sequence)
            return
        if row.drafts:
            judge(sequence.guesser, len(row.drafts), len(sampled) - 1, len(sequence.ids))
        grammar = sequence.grammar
        if grammar and grammar.error:
            self._refuse(Refused(sequence.key, "invalid_request", str(GrammarRefused(grammar.error))))
            return
        first, sequence.unreported = sequence.unreported, []
        start, finish = sequence.num_output - len(first), None
        ids: list[int] = []
        forced: list[int] = []
        for token in sampled:
            ids.append(token.id)
            sequence.ids.append(token.id)
            if grammar:
                grammar.accept([token.id])
            finish = _finish(sequence)
            if finish:
                break
            if sequence.thinking:
                sequence.thinking.see(token.id)
                if forced := _force(sequence):
                    finish = _finish(sequence)
                    break
        self._scheduler.commit(row, len(sequence.ids) - 1 - len(forced))
        output = Output(sequence.key, sequence.choice, start, [*first, *ids, *forced], finish)
        if not sequence.has_reported:
            sequence.has_reported = True
            output.cached = sequence.num_cached or 0
        if sampled[0].logprob:
            output.logprobs = [token.logprob for token in sampled[: len(ids)] if token.logprob]
        self._report.outputs.append(output)
        if finish:
            self._scheduler.remove(sequence)
            self._forget(sequence.key)

    def _refuse(self, refused: Refused) -> None:
        self.abort([(refused.key, -1)])
        self._report.refused.append(refused)

    def _forget(self, key: str) -> None:
        if not self._scheduler.has_job(key):
            self._told.pop(key, None)

    def _tell_prefilling(self, sequence: Sequence) -> None:
        now = self._clock()
        if sequence.has_reported or now - self._told.get(sequence.key, -_PREFILLING_PERIOD_S) < _PREFILLING_PERIOD_S:
            return
        self._told[sequence.key] = now
        self._report.prefilling.append(Prefilling(sequence.key, sequence.num_computed, len(sequence.ids)))

    def _write_stamp(self, plan: StepPlan) -> None:
        self._num_steps += 1
        if self._stamp:
            num_tokens, is_decode = plan.num_tokens, plan.is_decode
            predicted_s = self._pace.predict(num_tokens, num_rows=len(plan.rows), is_decode=is_decode)
            if self._sight:
                predicted_s += self._sight.predict_s(self._sight.num_unseen(plan.rows))
            self._stamp.write(self._num_steps, "decode" if is_decode else "prefill", predicted_s)


def _force(sequence: Sequence) -> list[int]:
    """Write what a sequence's bound on reasoning makes due, and return it. These are computed like a prompt."""
    if sequence.thinking is None:
        return []
    forced: list[int] = []
    while (due := sequence.thinking.due) and len(sequence.ids) < sequence.max_ids:
        sequence.thinking.see(due[0])
        sequence.ids.append(due[0])
        forced.append(due[0])
    if forced and sequence.grammar:
        sequence.grammar.accept(forced)
    return forced


def _finish(sequence: Sequence) -> Literal["stop", "length"] | None:
    """Why a sequence has ended, if it has: its grammar may leave nothing to add."""
    if sequence.grammar and sequence.grammar.is_over:
        return "stop"
    return sequence.finish()
