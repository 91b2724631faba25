"""Running a plan so that one bad row costs its own job and nobody else's.

A plan that fails is run again in halves until each row is computed or has failed alone. A row that is alone and still
too large for the device's memory is cut in two, and from then on steps are smaller for a while.
"""

from collections.abc import Callable

from shared import log
from worker.engine.errors import DeviceLost, OutOfMemory
from worker.engine.plan import Row, Sampled, StepPlan, accept

_RECOVERY_STEPS = 256  # steps without trouble after which the bound on a step's tokens is doubled again
_log = log.get(__name__)

Result = tuple[Row, list[Sampled] | Exception]


class Guard:
    """Runs plans.

    Args:
        run: see `worker.engine.engine.Runner`.
        step_tokens: that a step may have at most.
    """

    def __init__(self, run: Callable[[StepPlan], list[Sampled]], step_tokens: int) -> None:
        self._run = run
        self._most_tokens = step_tokens
        self._num_good = 0
        self.step_tokens = step_tokens  # that a step may have, by what fitted into memory

    def run(self, plan: StepPlan, on_attempt: Callable[[StepPlan], None]) -> list[Result]:
        """Each row with the tokens that it brings, or with the error that it fails with alone.

        A row cut for want of memory comes out in parts. `on_attempt` is told of each run after the first.

        Raises:
            DeviceLost: no plan can run any more.
        """
        try:
            results = self._attempt(plan)
        except DeviceLost:
            raise
        except Exception as error:
            _log.warning("engine.step_failed", rows=len(plan.rows), error=f"{type(error).__name__}: {error}")
            return self._divide(plan, error, on_attempt)
        if self.step_tokens < self._most_tokens:
            self._recover()
        return results

    def _divide(self, plan: StepPlan, error: Exception, on_attempt: Callable[[StepPlan], None]) -> list[Result]:
        """The same of a plan that failed with `error`."""
        self._num_good = 0
        if isinstance(error, OutOfMemory):
            self.step_tokens = min(self.step_tokens, max(1, plan.num_tokens // 2))
        parts = _halves(plan, isinstance(error, OutOfMemory))
        if not parts:
            return [(plan.rows[0], error)]
        results: list[Result] = []
        for part in parts:
            on_attempt(part)
            try:
                results += self._attempt(part)
            except DeviceLost:
                raise
            except Exception as next_error:
                results += self._divide(part, next_error, on_attempt)
            if len(plan.rows) == 1 and isinstance(results[-1][1], Exception):
                break  # what follows in the same row needs what has failed
        return results

    def _attempt(self, plan: StepPlan) -> list[Result]:
        tokens = self._run(plan)
        results: list[Result] = []
        first = 0
        for row in plan.rows:
            stop = first + (1 + len(row.drafts) if row.is_sampled else 0)
            sampled = tokens[first:stop]
            results.append((row, accept(row.drafts, sampled) if row.drafts else sampled))
            first = stop
        assert first == len(tokens), f"{len(tokens)} tokens were sampled where {first} were asked for"
        return results

    def _recover(self) -> None:
        self._num_good += 1
        if self._num_good >= _RECOVERY_STEPS:
            self._num_good = 0
            self.step_tokens = min(2 * self.step_tokens, self._most_tokens)


def _halves(plan: StepPlan, may_cut: bool) -> list[StepPlan]:
    """The plan in two; nothing if it cannot be divided."""
    rows = plan.rows
    if len(rows) > 1:
        return [StepPlan(rows[: len(rows) // 2]), StepPlan(rows[len(rows) // 2 :])]
    row = rows[0]
    if row.drafts:
        return [StepPlan((Row(row.sequence, row.start, row.stop - len(row.drafts)),))]
    middle = (row.start + row.stop) // 2
    if not may_cut or middle == row.start:
        return []
    return [StepPlan((Row(row.sequence, row.start, middle),)), StepPlan((Row(row.sequence, middle, row.stop),))]
