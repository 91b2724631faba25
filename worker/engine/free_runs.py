"""Which blocks are free, as runs of consecutive ids.

Attention reads the cache as strided views, one view for each run of consecutive blocks, so a sequence in few runs is a
fast one. This class therefore hands out neighbours where it can.

On a CPU the cache's memory is taken as it is first written, in huge pages for each layer and head: half a gigabyte for
the first block in a new place. New runs therefore begin between those there were, until the gaps get short.
"""

import heapq
from collections.abc import Iterator

_LOT = 64  # blocks that are opened at once: 2,048 tokens of 32, a quarter of a huge page of a head of 128 in bfloat16
_SHORT_GAP = 32  # blocks: rather than divide a shorter gap, or one of less than twice what is wanted, others are opened


class FreeRuns:
    """A set of block ids, kept as maximal runs. All blocks are free at first, and shut until there is need of them."""

    def __init__(self, num_blocks: int) -> None:
        self._length: dict[int, int] = {}  # first block of a run → its length
        self._first: dict[int, int] = {}  # last block of a run → its first
        self._longest: list[tuple[int, int]] = []  # heap of (-length, first); outdated entries are skipped when met
        self._num_blocks = num_blocks
        self._num_open = 0
        self.num_free = num_blocks

    def take(self, count: int, after: int | None) -> list[int]:
        """Remove `count` blocks, by preference the ones right behind block `after`, which is in use.

        A run begun elsewhere starts in the middle of the longest gap: the sequence before the gap keeps half of the
        room to grow into. The caller has checked that there are enough.
        """
        taken: list[int] = []
        while len(taken) < count:
            wanted = count - len(taken)
            if after is not None and after + 1 == self._num_open:
                self._open(wanted)
            if after is not None and after + 1 in self._length:
                first, offset = after + 1, 0
            else:
                first = self._find_longest()
                while self._num_open < self._num_blocks and self._length.get(first, 0) < max(2 * wanted, _SHORT_GAP):
                    self._open(2 * wanted)
                    first = self._find_longest()
                offset = max(0, self._length[first] - wanted) // 2 if first else 0
            length = self._drop(first)
            got = min(wanted, length - offset)
            if offset:
                self._put(first, offset)
            if offset + got < length:
                self._put(first + offset + got, length - offset - got)
            taken.extend(range(first + offset, first + offset + got))
            after = taken[-1]
        self.num_free -= count
        return taken

    def add(self, block: int) -> None:
        """Put one block back; it must not be free."""
        first, length = block, 1
        if block + 1 in self._length:
            length += self._drop(block + 1)
        if block - 1 in self._first:
            first = self._first[block - 1]
            length += self._drop(first)
        self._put(first, length)
        self.num_free += 1

    def __iter__(self) -> Iterator[int]:
        """Every free block, in no particular order."""
        for first, length in self._length.items():
            yield from range(first, first + length)
        yield from range(self._num_open, self._num_blocks)

    def _open(self, wanted: int) -> None:
        """Let further blocks be taken, at least so many if they are there."""
        first = self._num_open
        self._num_open = min(self._num_blocks, first + -(-wanted // _LOT) * _LOT)
        if first == self._num_open:
            return
        length = self._num_open - first
        if first - 1 in self._first:
            first = self._first[first - 1]
            length += self._drop(first)
        self._put(first, length)

    def _put(self, first: int, length: int) -> None:
        self._length[first] = length
        self._first[first + length - 1] = first
        heapq.heappush(self._longest, (-length, first))
        if len(self._longest) > 64 + 4 * len(self._length):
            self._longest = [(-length, first) for first, length in self._length.items()]
            heapq.heapify(self._longest)

    def _drop(self, first: int) -> int:
        length = self._length.pop(first)
        del self._first[first + length - 1]
        return length

    def _find_longest(self) -> int:
        """The first block of the longest run; -1: there is none."""
        while self._longest:
            length, first = self._longest[0]
            if self._length.get(first) == -length:
                return first
            heapq.heappop(self._longest)
        return -1
