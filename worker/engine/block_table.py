"""A sequence's block table: where in the cache its tokens are."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """Positions [start, stop) of a sequence, in consecutive slots of the cache from `slot` on."""

    start: int
    stop: int
    slot: int


class BlockTable:
    """The blocks of one sequence in order, and the runs of consecutive ids that they form."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.blocks: list[int] = []
        self._runs: list[Run] = []

    @property
    def num_tokens(self) -> int:
        """Tokens for which there is room."""
        return len(self.blocks) * self._block_tokens

    @property
    def last(self) -> int | None:
        """The last block."""
        return self.blocks[-1] if self.blocks else None

    def extend(self, blocks: Sequence[int]) -> None:
        """Append blocks."""
        for block in blocks:
            start = self.num_tokens
            if self.blocks and block == self.blocks[-1] + 1:
                self._runs[-1] = self._runs[-1]._replace(stop=start + self._block_tokens)
            else:
                self._runs.append(Run(start, start + self._block_tokens, block * self._block_tokens))
            self.blocks.append(block)

    def clear(self) -> list[int]:
        """Empty the table and return what it held."""
        blocks, self.blocks = self.blocks, []
        self._runs.clear()
        return blocks

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The runs that hold positions [start, stop), cut to these."""
        for run in self._runs:
            low, high = max(run.start, start), min(run.stop, stop)
            if low < high:
                yield Run(low, high, run.slot + low - run.start)
