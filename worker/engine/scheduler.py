"""Who runs next: continuous batching under a token budget, over a block pool that may run out.

No tensors and no clock: jobs go in, plans come out. A sequence is waiting, running or gone. It becomes running by
`_admit`, waiting again by `_preempt` (its blocks are given up and recomputed later), gone by `remove`.

Nothing can starve: sequences are in one order (interactive before batch, then by arrival), the first is admitted
first and preempted last, and admission to the engine has made sure that any sequence alone fits the pool.
"""

from bisect import insort

from worker.engine.blocks import BlockPool
from worker.engine.plan import Row, StepPlan
from worker.engine.prefix import extend_chain
from worker.engine.sequence import Sequence


class Scheduler:
    """Decides each step. `slots` bounds the sequences that run at once, `step_tokens` the tokens of a step.

    The bound is raised to slots + 1 where it is smaller, so that decoding never shuts out prefill.
    """

    def __init__(self, pool: BlockPool, *, slots: int, step_tokens: int) -> None:
        self._pool = pool
        self._slots = slots
        self._step_tokens = max(step_tokens, slots + 1)
        self._waiting: list[Sequence] = []  # both in order
        self._running: list[Sequence] = []
        self._jobs: dict[str, list[Sequence]] = {}

    @property
    def num_running(self) -> int:
        """Sequences with blocks in the cache."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences without."""
        return len(self._waiting)

    def has_job(self, key: str) -> bool:
        """Whether any choice of the job is waiting or running."""
        return key in self._jobs

    def has(self, sequence: Sequence) -> bool:
        """Whether this sequence is waiting or running."""
        return any(other is sequence for other in self._jobs.get(sequence.key, ()))

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self._jobs.setdefault(sequence.key, []).append(sequence)
        insort(self._waiting, sequence, key=lambda other: other.order)

    def remove(self, sequence: Sequence) -> None:
        """The sequence has finished or is not wanted any more; its blocks return at once."""
        siblings = self._jobs[sequence.key]
        siblings.remove(sequence)
        if not siblings:
            del self._jobs[sequence.key]
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.release(sequence.table.clear())
        else:
            self._waiting.remove(sequence)

    def abort(self, key: str, choice: int = -1) -> None:
        """Remove one choice of a job, or all of them (-1). Unknown ones are ignored: they have just finished."""
        for sequence in list(self._jobs.get(key, ())):
            if choice in (-1, sequence.choice):
                self.remove(sequence)

    def schedule(self) -> StepPlan:
        """The next step; empty if there is nothing to do."""
        # 1. Every decoding sequence gets its one token, the first in order first.
        rows = [
            Row(sequence, sequence.num_computed, len(sequence.ids))
            for sequence in list(self._running)
            if sequence.num_left == 1 and sequence in self._running and self._grow(sequence)
        ]
        decoding = {id(row.sequence) for row in rows}
        # 2. Waiting sequences join while there are slots and blocks.
        self._admit_waiting()
        # 3. The rest of the budget goes to prefill, the first in order first.
        budget = self._step_tokens - len(rows)
        for sequence in self._running:
            if budget and id(sequence) not in decoding:
                count = min(budget, sequence.num_left)
                rows.append(Row(sequence, sequence.num_computed, sequence.num_computed + count))
                budget -= count
        return StepPlan(tuple(rows))

    def commit(self, row: Row) -> None:
        """The row was computed: its keys and values are in the cache, and its full blocks can be shared."""
        sequence, block_tokens = row.sequence, self._pool.block_tokens
        sequence.num_computed = row.stop
        first, stop = row.start // block_tokens, row.stop // block_tokens
        if first < stop:
            extend_chain(sequence.chain, sequence.ids, block_tokens, stop)
        for index in range(first, stop):
            self._pool.publish(sequence.chain[index], sequence.table.blocks[index])

    def _admit_waiting(self) -> None:
        for sequence in list(self._waiting):
            if len(self._running) >= self._slots:
                return
            if not self._is_held(sequence) and not self._admit(sequence):
                return  # strictly in order: a small one behind must not keep a large one waiting for ever

    def _is_held(self, sequence: Sequence) -> bool:
        """Further choices of a job wait for the first one's prompt, to share its blocks."""
        first = self._jobs[sequence.key][0]
        return first is not sequence and not first.is_prompt_computed

    def _admit(self, sequence: Sequence) -> bool:
        # 1. Blocks that hold a beginning of it already. Never its last token: that one is computed, to sample.
        extend_chain(sequence.chain, sequence.ids, self._pool.block_tokens, self._num_shareable(sequence))
        known = self._pool.match(sequence.chain[: self._num_shareable(sequence)])
        # 2. New blocks for the rest, all at once, so that they are neighbours. One block for each running sequence
        #    is left over: else the next few tokens would preempt what is admitted now.
        count = self._pool.num_blocks_for(len(sequence.ids)) - len(known)
        if not self._pool.can_allocate(count + len(self._running), beside=known):
            return False
        self._pool.share(known)
        sequence.table.extend(known)
        sequence.table.extend(self._pool.allocate(count, after=sequence.table.last))
        sequence.num_computed = len(known) * self._pool.block_tokens
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, sequence.num_prompt)
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=lambda other: other.order)
        return True

    def _num_shareable(self, sequence: Sequence) -> int:
        return (len(sequence.ids) - 1) // self._pool.block_tokens

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the sequence's next token; False if it had to be preempted itself."""
        while sequence.table.num_tokens < len(sequence.ids):
            if self._pool.can_allocate(1):
                sequence.table.extend(self._pool.allocate(1, after=sequence.table.last))
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._pool.release(sequence.table.clear())
        sequence.num_computed = 0
        insort(self._waiting, sequence, key=lambda other: other.order)
