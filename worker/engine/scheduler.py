"""Who runs next: continuous batching under a token budget, over a cache that may run out.

No tensors and no clock: jobs go in, plans come out; how long steps took comes in by `Pace`. A sequence is waiting,
running or gone. It becomes running by `_admit`, waiting again by `_preempt` (its blocks are given up and recomputed
later, but for those still known), gone by `remove`.

Nothing can starve. Who waits is taken in turns (`Line`); the one whose turn it is keeps it until there is room. Those
that run are in one order, interactive before batch, then by arrival: the first is preempted last, so it always ends.
Admission to the engine has made sure that any sequence alone fits the cache.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator

from worker.engine.cache_space import CacheSpace
from worker.engine.chunk import prefill_tokens
from worker.engine.line import Line
from worker.engine.pace import Pace
from worker.engine.plan import Row, StepPlan
from worker.engine.sequence import Sequence
from worker.engine.speculation import Speculation
from worker.engine.vision.visual import Glance


class Scheduler:
    """Decides each step. `slots` bounds the sequences that run at once, `step_tokens` the tokens of a step.

    The bound is raised to slots + 1 where it is smaller, so that decoding never shuts out prefill.
    """

    def __init__(
        self,
        space: CacheSpace,
        *,
        slots: int,
        step_tokens: int,
        pace: Pace | None = None,
        speculation: Speculation | None = None,
        glance: Callable[[], Glance] | None = None,
    ) -> None:
        """`glance`: how many images a step may see for the first time; None: there are none."""
        self._space = space
        self._slots = slots
        self._step_tokens = max(step_tokens, slots + 1)
        self._pace = pace or Pace()
        self._speculation = speculation
        self._glance = glance
        self._line = Line()
        self._running: list[Sequence] = []  # in order
        self._jobs: dict[str, list[Sequence]] = {}
        self._blocked: tuple[Sequence, int, int] | None = None  # whom there was no room for, and how much there was

    @property
    def num_running(self) -> int:
        """Sequences with blocks in the cache."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences without."""
        return self._line.num_waiting

    def has_job(self, key: str) -> bool:
        """Whether any choice of the job is waiting or running."""
        return key in self._jobs

    def has(self, sequence: Sequence) -> bool:
        """Whether this sequence is waiting or running."""
        return any(other is sequence for other in self._jobs.get(sequence.key, ()))

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self._jobs.setdefault(sequence.key, []).append(sequence)
        self._space.open(sequence)
        self._line.enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """The sequence has finished or is not wanted any more; its blocks return at once."""
        siblings = self._jobs[sequence.key]
        siblings.remove(sequence)
        if not siblings:
            del self._jobs[sequence.key]
        if sequence.is_running:
            self._stop(sequence)
        else:
            self._line.remove(sequence)
        self._line.leave(sequence)
        self._blocked = None

    def abort(self, key: str, choice: int = -1) -> None:
        """Remove one choice of a job, or all of them (-1). Unknown ones are ignored: they have just finished."""
        for sequence in list(self._jobs.get(key, ())):
            if choice in (-1, sequence.choice):
                self.remove(sequence)

    def schedule(self, step_tokens: int | None = None) -> StepPlan:
        """The next step; empty if there is nothing to do. `step_tokens`: fewer than usual, for want of memory."""
        step_tokens = min(step_tokens or self._step_tokens, self._step_tokens)
        # 1. Every decoding sequence gets its one token, the first in order first.
        short = [sequence for sequence in self._running if sequence.room < len(sequence.ids)]
        for sequence in short:
            if sequence.is_running and sequence.num_left == 1:
                self._grow(sequence)
        # 2. Waiting sequences join while there are slots and blocks, in the place of batch jobs if need be.
        self._admit_waiting()
        # 3. Prefill gets what is left of the budget, as far as it does not slow the others down too much.
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self._running:
            (decoding if len(sequence.ids) - sequence.num_computed == 1 else prefilling).append(sequence)
        step_tokens = max(step_tokens, len(decoding) + 1)
        rows = list(self._prefill_rows(prefilling, len(decoding), step_tokens)) if prefilling else []
        # 4. Where no prompt waits, decoding sequences may try guessed tokens along with their one.
        if not prefilling and self._speculation:
            return self._plan(self._speculation.rows(decoding, self._space, step_tokens))
        if not rows and not decoding and self._running:  # none of those in prefill can move: all hold too much
            self._preempt(self._running[-1])
            return self.schedule(step_tokens)
        return self._plan([Row(each, each.num_computed, len(each.ids)) for each in decoding] + rows)

    def commit(self, row: Row, num_computed: int) -> None:
        """The row was computed, and of its sequence so many tokens now count."""
        sequence = row.sequence
        self._space.commit(sequence, num_computed)
        self._line.charge(sequence, num_computed)
        if row.start < sequence.num_prompt <= num_computed:
            siblings = self._jobs[sequence.key]
            if len(siblings) > 1 and siblings[0] is sequence:
                self._space.publish_tail(sequence)

    def _plan(self, rows: Iterable[Row]) -> StepPlan:
        plan = StepPlan(tuple(rows), tuple(self._space.transfers))
        if plan.rows:
            self._space.transfers.clear()
        return plan

    def _prefill_rows(self, prefilling: list[Sequence], num_decoding: int, step_tokens: int) -> Iterator[Row]:
        """Half of the budget goes to those whose owners had least, half to those who need least.

        So a short prompt does not wait for a long one that came before, and a long one moves on whatever comes.
        """
        budget = prefill_tokens(
            self._pace,
            num_decoding=num_decoding,
            num_prefilling=len(prefilling),
            step_tokens=step_tokens,
        )
        counts = dict.fromkeys(map(id, prefilling), 0)
        in_turn = sorted(prefilling, key=lambda each: (each.is_batch, self._line.standing(each), each.arrival))
        by_need = sorted(prefilling, key=lambda each: (each.is_batch, each.num_left))
        for order, kept_back in ((in_turn, budget // 2), (by_need, 0)):
            for sequence in order:
                more = min(budget - kept_back, sequence.num_left - counts[id(sequence)])
                counts[id(sequence)] += more
                budget -= more
        glance = self._glance() if self._glance else None
        for sequence in prefilling:
            start = sequence.num_computed
            stop = self._space.room(sequence, start + counts[id(sequence)])
            if glance and sequence.visual:
                stop = sequence.visual.reach(start, stop, glance)
            if stop > start:
                self._space.grow(sequence, stop)
                yield Row(sequence, start, stop)

    def _admit_waiting(self) -> None:
        while self._line.num_waiting:
            sequence = next((each for each in self._line.candidates() if not self._is_held(each)), None)
            # Strictly in turn: a small one behind must not keep a large one waiting for ever.
            if sequence is None or not self._admit(sequence):
                return

    def _is_held(self, sequence: Sequence) -> bool:
        """Further choices of a job wait for the first one's prompt, to share its blocks."""
        first = self._jobs[sequence.key][0]
        return first is not sequence and not first.is_prompt_computed

    def _admit(self, sequence: Sequence) -> bool:
        """Let it run; False if there is no room, even in the place of batch jobs."""
        while True:
            if len(self._running) < self._slots and not self._is_blocked(sequence):
                # One block for each running sequence is left over: else the next few tokens would preempt what is
                # admitted now.
                if self._space.admit(sequence, spare=len(self._running)):
                    break
                self._blocked = sequence, self._space.num_free, len(self._running)
            if sequence.is_batch or not self._running or not self._running[-1].is_batch:
                return False
            self._preempt(self._running[-1])
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, sequence.num_prompt)
            sequence.num_charged = sequence.num_computed  # what was found costs nothing
        if sequence.num_left == 1 and sequence.room < len(sequence.ids):
            self._space.grow(sequence, len(sequence.ids))  # all but its last token was found: it decodes at once
        self._line.take(sequence)
        sequence.is_running = True
        insort(self._running, sequence, key=lambda other: other.order)
        return True

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether there was no room for it, and nothing has changed since."""
        return self._blocked is not None and self._blocked == (sequence, self._space.num_free, len(self._running))

    def _grow(self, sequence: Sequence) -> None:
        """Make room for the sequence's next token, at the cost of the last in order, which may be itself."""
        while sequence.is_running:
            if self._space.can_grow(sequence, len(sequence.ids)):
                self._space.grow(sequence, len(sequence.ids))
                return
            self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self._line.wait(sequence)

    def _stop(self, sequence: Sequence) -> None:
        sequence.is_running = False
        self._running.remove(sequence)
        self._space.release(sequence)
        self._blocked = None
