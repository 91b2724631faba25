"""The serving loop. `step` is three verbs: schedule, run, postprocess."""

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from shared import log
from worker.engine.admission import Limits, refusal
from worker.engine.blocks import BlockPool
from worker.engine.errors import DeviceLost
from worker.engine.pace import Pace
from worker.engine.plan import Row, Sampled, StepPlan
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.protocol import Output, Prefilling, Refused, Step, Submit
from worker.stamp import Stamp

_PREFILLING_PERIOD_S = 1.0
_log = log.get(__name__)


class Runner(Protocol):
    """Computes plans. `worker.engine.runner.TorchRunner` is the real one."""

    vocab_size: int

    def run(self, plan: StepPlan) -> list[Sampled]:
        """One token for each row that samples, in order. Running a plan again gives the same.

        Raises:
            DeviceLost: no plan can run any more.
            Exception: anything else means that one of the rows cannot be computed.
        """
        ...


class Engine:
    """One model's jobs, from `submit` to the outputs of `step`. Not for use by several threads.

    Args:
        runner: computes the plans.
        num_blocks, block_tokens: size of the runner's cache.
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
        stamp: Stamp | None = None,
        max_waiting: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._pool = BlockPool(num_blocks, block_tokens)
        self._scheduler = Scheduler(self._pool, slots=slots, step_tokens=prefill_tokens)
        self._limits = Limits(runner.vocab_size, context_limit, num_blocks * block_tokens)
        self._stamp = stamp
        self._max_waiting = max_waiting
        self._clock = clock
        self._pace = Pace()
        self._arrivals = itertools.count()
        self._num_steps = 0
        self._report = Step()
        self._told: dict[str, float] = {}  # when each key's prefill was last reported

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or report anything."""
        scheduler = self._scheduler
        return bool(scheduler.num_running or scheduler.num_waiting or self._report.outputs or self._report.refused)

    def submit(self, job: Submit) -> None:
        """Take a job in. What cannot run comes out of the next step as Refused.

        A key that is running already ends that job too: its two owners cannot be told apart.
        """
        refused = refusal(job, self._limits)
        if not refused and self._scheduler.has_job(job.key):
            refused = Refused(job.key, "invalid_request", "A job of this key was running already; both have ended.")
        if not refused and self._scheduler.num_waiting + len(job.choices) > self._max_waiting:
            refused = Refused(job.key, "capacity", f"More than {self._max_waiting} sequences would be waiting.")
        if refused:
            self._refuse(refused)
            return
        arrival = next(self._arrivals)
        for choice in job.choices:
            sequence = Sequence(
                job,
                choice,
                arrival=arrival,
                context_limit=self._limits.context_limit,
                block_tokens=self._pool.block_tokens,
            )
            if reason := sequence.finish():  # its resume prefix was all there is to it
                self._report.outputs.append(Output(job.key, choice.index, sequence.num_output, [], reason))
            else:
                self._scheduler.add(sequence)

    def abort(self, choices: Iterable[tuple[str, int]]) -> None:
        """Drop these (key, choice), -1 for all choices, in whatever phase; nothing more is reported of them."""
        for key, choice in choices:
            self._scheduler.abort(key, choice)
            report = self._report
            report.outputs = [out for out in report.outputs if out.key != key or choice not in (-1, out.choice)]
            self._forget(key)

    def step(self) -> Step:
        """Compute the next step and return all that happened since the last one."""
        plan = self._scheduler.schedule()
        if plan.rows:
            self._write_stamp(plan)
            started = self._clock()
            results = self._run(plan)
            self._pace.learn(plan.num_tokens, self._clock() - started, is_decode=plan.is_decode)
            self._postprocess(results)
        report, self._report = self._report, Step()
        report.running, report.waiting = self._scheduler.num_running, self._scheduler.num_waiting
        report.blocks_free = self._pool.num_free
        if self._stamp and not self.has_work:
            self._stamp.write(self._num_steps, "idle")
        return report

    def _run(self, plan: StepPlan) -> list[tuple[Row, Sampled | None]]:
        """Run the plan; if that fails, each row alone, and refuse the jobs of those that fail again."""
        try:
            tokens = iter(self._runner.run(plan))
            return [(row, next(tokens) if row.is_sampled else None) for row in plan.rows]
        except DeviceLost:
            raise
        except Exception as error:
            key = plan.rows[0].sequence.key
            if len(plan.rows) == 1:
                _log.exception("engine.row_failed", key=key)
                self._refuse(Refused(key, "engine_error", f"{type(error).__name__}: {error}"))
                return []
            _log.warning("engine.step_failed", rows=len(plan.rows), error=f"{type(error).__name__}: {error}")
        alone = (self._run(StepPlan((row,))) for row in plan.rows if self._scheduler.has(row.sequence))
        return [result for results in alone for result in results]

    def _postprocess(self, results: list[tuple[Row, Sampled | None]]) -> None:
        for row, sampled in results:
            sequence = row.sequence
            if not self._scheduler.has(sequence):
                continue  # another choice of its job failed in this step
            self._scheduler.commit(row)
            if sampled is None:
                self._tell_prefilling(sequence)
                continue
            start = sequence.num_output
            sequence.ids.append(sampled.id)
            output = Output(sequence.key, sequence.choice, start, [sampled.id], sequence.finish())
            if not sequence.has_reported:
                sequence.has_reported = True
                output.cached = sequence.num_cached or 0
            if sampled.logprob:
                output.logprobs = [sampled.logprob]
            self._report.outputs.append(output)
            if output.finish:
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
            predicted_s = self._pace.predict(plan.num_tokens, is_decode=plan.is_decode)
            self._stamp.write(self._num_steps, "decode" if plan.is_decode else "prefill", predicted_s)
