"""A sequence's block table: where in the cache its tokens are."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """Positions [start, stop) of a sequence, in consecutive slots of the cache from `slot` on."""

    start: int
    stop: int
    slot: int


class BlockTable:
    """The blocks of one sequence in order, and the runs of consecutive ids that they form.

    Where a window slides, the first blocks are dropped as it passes them; `num_dropped` counts these, and positions
    keep their numbers.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.blocks: list[int] = []
        self.num_dropped = 0
        self._runs: list[Run] = []

    @classmethod
    def of(cls, block_tokens: int, num_dropped: int, runs: list[Run]) -> "BlockTable":
        """A table with these runs, the last of which may end within a block."""
        table = cls(block_tokens)
        table.num_dropped = num_dropped
        table._runs = runs
        for run in runs:
            first = run.slot // block_tokens
            table.blocks += range(first, first - (run.start - run.stop) // block_tokens)
        return table

    @property
    def num_blocks(self) -> int:
        """Blocks from position 0 on, those dropped included."""
        return self.num_dropped + len(self.blocks)

    @property
    def num_tokens(self) -> int:
        """The position up to which there is room."""
        return self.num_blocks * self._block_tokens

    @property
    def last(self) -> int | None:
        """The last block."""
        return self.blocks[-1] if self.blocks else None

    def block(self, index: int) -> int:
        """The block of positions [index x block_tokens, (index + 1) x block_tokens)."""
        return self.blocks[index - self.num_dropped]

    def extend(self, blocks: Sequence[int]) -> None:
        """Append blocks."""
        at = 0
        while at < len(blocks):
            stop = at + 1
            while stop < len(blocks) and blocks[stop] == blocks[stop - 1] + 1:
                stop += 1
            self._append(blocks[at], stop - at)
            at = stop

    def _append(self, first: int, count: int) -> None:
        """Append so many consecutive blocks."""
        start = self.num_tokens
        stop = start + count * self._block_tokens
        if self.blocks and first == self.blocks[-1] + 1:
            self._runs[-1] = self._runs[-1]._replace(stop=stop)
        else:
            self._runs.append(Run(start, stop, first * self._block_tokens))
        self.blocks += range(first, first + count)

    def begin(self, num_dropped: int) -> None:
        """Let an empty table begin behind so many blocks that are not wanted."""
        assert not self.blocks, "only an empty table begins"
        self.num_dropped = num_dropped

    def drop(self, num_dropped: int) -> list[int]:
        """Give up the first blocks, so that this many are dropped in all; returns those given up now."""
        count = min(num_dropped - self.num_dropped, len(self.blocks))
        if count <= 0:
            return []
        dropped, self.blocks = self.blocks[:count], self.blocks[count:]
        self.num_dropped += count
        start = self.num_dropped * self._block_tokens
        while self._runs and self._runs[0].stop <= start:
            del self._runs[0]
        if self._runs and self._runs[0].start < start:
            first = self._runs[0]
            self._runs[0] = Run(start, first.stop, first.slot + start - first.start)
        return dropped

    def clear(self) -> list[int]:
        """Empty the table and return what it held."""
        blocks, self.blocks = self.blocks, []
        self.num_dropped = 0
        self._runs.clear()
        return blocks

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The runs that hold positions [start, stop), cut to these; dropped positions are left out."""
        for run in self._runs:
            low, high = max(run.start, start), min(run.stop, stop)
            if low < high:
                yield Run(low, high, run.slot + low - run.start)

    def slots(self, start: int, stop: int) -> list[int]:
        """The slots of positions [start, stop), one by one; dropped positions are left out."""
        return [slot for run in self.runs(start, stop) for slot in range(run.slot, run.slot + run.stop - run.start)]
