"""The pool of cache blocks: a fixed number, counted references, unused ones kept for reuse by the prefix index."""

from collections.abc import Callable, Sequence

from worker.engine.errors import OutOfBlocks
from worker.engine.free_runs import FreeRuns
from worker.engine.prefix import PrefixIndex

_EVICTION_SHARE = 16  # one sixteenth of the pool is evicted at once, so that freed neighbours form runs
_MAX_EVICTED = 256  # and not more: each may have to be copied to another tier within the step


class BlockPool:
    """`num_blocks` blocks of `block_tokens` tokens each.

    A block is in exactly one of three states: used (one reference or more), idle (no reference, contents known to the
    prefix index) or free.
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, on_evict: Callable[[bytes, int], None] = lambda name, block: None
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._references = [0] * num_blocks
        self._free = FreeRuns(num_blocks)
        self._index = PrefixIndex()
        self._on_evict = on_evict  # a known block, by name and number, is about to be written over

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could give: free or idle."""
        return self._free.num_free + self._index.num_idle

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_tokens)

    def find(self, name: bytes) -> int | None:
        """The block of this name. It is not yet referenced: see `share`."""
        return self._index.find(name)

    def can_allocate(self, count: int, *, beside: Sequence[int] = ()) -> bool:
        """Whether `count` blocks could be allocated once the blocks `beside` are shared."""
        return count <= self.num_free - sum(self._index.is_idle(block) for block in beside)

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference to each of these used or idle blocks."""
        for block in blocks:
            if self._index.is_idle(block):
                self._index.unpark(block)
            else:
                assert self._references[block], f"block {block} holds nothing to share"
            self._references[block] += 1

    def allocate(self, count: int, *, after: int | None = None) -> list[int]:
        """Take `count` blocks with one reference each, by preference those right behind block `after`.

        Raises:
            OutOfBlocks: fewer are free; nothing was taken.
        """
        if not count:
            return []
        if count > self._free.num_free:
            if count > self.num_free:
                raise OutOfBlocks(count, self.num_free)
            lot = max(count - self._free.num_free, min(self.num_blocks // _EVICTION_SHARE, _MAX_EVICTED))
            for _ in range(min(lot, self._index.num_idle)):
                name, block = self._index.evict()
                self._on_evict(name, block)
                self._free.add(block)
        blocks = self._free.take(count, after)
        for block in blocks:
            self._references[block] = 1
        return blocks

    def publish(self, name: bytes, block: int) -> bool:
        """The block's tokens are computed: others may share it under this name. False if another block has the name."""
        assert self._references[block], f"block {block} is not in use"
        return self._index.add(name, block)

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each block of a sequence, given in the sequence's order.

        The last block becomes idle first, so eviction shortens what is known of a sequence from its end.
        """
        for block in reversed(blocks):
            assert self._references[block], f"block {block} was released before"
            self._references[block] -= 1
            if not self._references[block] and not self._index.park(block):
                self._free.add(block)
