"""The cache as sequences see it: who holds which blocks of which kind of layer, and what is found in it again.

Layers with full attention keep every token of a sequence. Layers with a sliding window of W keep the blocks that hold
its last W tokens and drop the rest as it moves on, so these layers have a smaller pool and block tables of their own.
A prefix is reused up to a point where both kinds are known: every block before it of the full layers, and of the
sliding ones those that the next token's window reaches. What a window leaves behind stays known like anything else that
nobody uses, until its room is needed.

The last block found may be shared in part: it is copied, and written on behind the shared tokens.
"""

from msgspec import Struct

from worker.engine.block_table import BlockTable
from worker.engine.blocks import BlockPool
from worker.engine.branches import Branches, Shared
from worker.engine.host_tier import HostTier
from worker.engine.plan import Transfer
from worker.engine.prefix import extend_chain, name_block
from worker.engine.sequence import Sequence

_SHARED_SHARE = 8  # fewer common tokens than an eighth of a block are not worth copying it


class WindowCap(Struct, frozen=True):
    """Layers with a sliding window have a pool of their own: tokens that a query sees, and blocks."""

    window: int
    num_blocks: int


class _Found(Struct, frozen=True):
    """A beginning that is known: so many full blocks, and a last one that is shared in part."""

    num_blocks: int
    partial: Shared | None

    def num_tokens(self, block_tokens: int) -> int:
        return self.num_blocks * block_tokens + (self.partial.num_tokens if self.partial else 0)


class _Shelf:
    """One kind of layers: its pool, its second tier, and which of a sequence's blocks it keeps."""

    def __init__(self, space: "CacheSpace", num_blocks: int, window: int | None, num_host_blocks: int) -> None:
        self._space = space
        self.window = window
        self.pool = BlockPool(num_blocks, space.block_tokens, self._evict)
        self.host = HostTier(num_host_blocks)

    def _evict(self, name: bytes, block: int) -> None:
        slot = self.host.put(name)
        if slot is not None:
            self._space.transfers.append(Transfer("spill", self.window is not None, block, slot))
        if self.window is None:
            self._space.branches.remove(name)

    def first_needed(self, num_computed: int) -> int:
        """The first block that a token at position `num_computed` reads."""
        return max(0, num_computed - self.window + 1) // self._space.block_tokens if self.window else 0

    def is_known(self, name: bytes) -> bool:
        """Whether such a block is on the device or in host memory."""
        return self.pool.find(name) is not None or self.host.find(name) is not None


class CacheSpace:
    """Blocks for sequences.

    Args:
        num_blocks, block_tokens: of layers with full attention; of all layers if there is no cap.
        cap: layers with a sliding window have fewer blocks.
        num_host_blocks: places for evicted blocks in host memory, of each kind of layers.
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, *, cap: WindowCap | None = None, num_host_blocks: int = 0
    ) -> None:
        self.block_tokens = block_tokens
        self.branches = Branches()
        self.transfers: list[Transfer] = []  # due before the next forward pass, in this order
        self._full = _Shelf(self, num_blocks, None, num_host_blocks)
        self._window = _Shelf(self, cap.num_blocks, cap.window, num_host_blocks) if cap else None
        if cap and cap.num_blocks < min(num_blocks, 2 + -(-cap.window // block_tokens)):
            raise ValueError(f"{cap.num_blocks} blocks of {block_tokens} tokens do not hold a window of {cap.window}")
        self._shelves = [self._full, self._window] if self._window else [self._full]

    @property
    def num_free(self) -> int:
        """Blocks that could be given, of the kind that has the smaller share of them left."""
        if self._window and self._window.pool.num_free * self._full.pool.num_blocks < (
            self._full.pool.num_free * self._window.pool.num_blocks
        ):
            return self._window.pool.num_free * self._full.pool.num_blocks // self._window.pool.num_blocks
        return self._full.pool.num_free

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_tokens)

    def open(self, sequence: Sequence) -> None:
        """A new sequence: it gets its own table for sliding layers where these are capped."""
        if self._window:
            sequence.window_table = BlockTable(self.block_tokens)

    def admit(self, sequence: Sequence, spare: int) -> bool:
        """Find what is known of the sequence and give it room for the rest, at once so that blocks are neighbours.

        `num_computed` is set to what was found. `spare` blocks are to be left over. False: there is no room; nothing
        was changed. Where nobody holds a block, there is room for every sequence that fits at all.
        """
        found = self._find(sequence)
        needs = self._needs(sequence, found)
        # Where nobody holds a block no more room will come. What it lacks later a window leaves behind as it moves on;
        # and a copy whose source has no room beside it is done without.
        is_alone = all(shelf.pool.num_free == shelf.pool.num_blocks for shelf in self._shelves)
        if is_alone and found.partial and not self._have_room(needs, spare, is_alone=is_alone):
            found = _Found(found.num_blocks, None)
            needs = self._needs(sequence, found)
        if not self._have_room(needs, spare, is_alone=is_alone):
            return False
        for shelf, need in zip(self._shelves, needs, strict=True):
            self._furnish(shelf, sequence, need)
        sequence.num_computed = found.num_tokens(self.block_tokens)
        self._note_room(sequence)
        return True

    def can_grow(self, sequence: Sequence, stop: int) -> bool:
        """Whether there is, or could be, room for all positions before `stop`."""
        return all(
            shelf.pool.can_allocate(max(0, self.num_blocks_for(stop) - self._table(shelf, sequence).num_blocks))
            for shelf in self._shelves
        )

    def grow(self, sequence: Sequence, stop: int) -> None:
        """Make that room. Raises OutOfBlocks if it cannot be."""
        for shelf in self._shelves:
            table = self._table(shelf, sequence)
            count = self.num_blocks_for(stop) - table.num_blocks
            if count > 0:
                table.extend(shelf.pool.allocate(count, after=table.last))
        self._note_room(sequence)

    def room(self, sequence: Sequence, stop: int) -> int:
        """The last position up to `stop` for which there is room, or could be."""
        if stop <= sequence.room:
            return stop
        for shelf in self._shelves:
            table = self._table(shelf, sequence)
            if table.num_tokens < stop:
                stop = min(stop, (table.num_blocks + shelf.pool.num_free) * self.block_tokens)
        return stop

    def _note_room(self, sequence: Sequence) -> None:
        sequence.room = sequence.table.num_tokens
        if self._window:
            sequence.room = min(sequence.room, sequence.window_table.num_tokens)

    def commit(self, sequence: Sequence, num_computed: int) -> None:
        """The sequence's first `num_computed` tokens are in the cache: its full blocks can be shared from now on."""
        first, stop = sequence.num_computed // self.block_tokens, num_computed // self.block_tokens
        sequence.num_computed = num_computed
        if first < stop:
            extend_chain(sequence.chain, sequence.keys, self.block_tokens, stop)
            for index in range(first, stop):
                self._publish(sequence, index, sequence.chain[index], self.block_tokens)
        if self._window:
            dropped = sequence.window_table.drop(self._window.first_needed(num_computed))
            self._window.pool.release(dropped)

    def publish_tail(self, sequence: Sequence) -> None:
        """Let others find the last block too, which is not full. It may be written on: they will copy it."""
        index, num_tokens = divmod(sequence.num_computed, self.block_tokens)
        if num_tokens:
            parent = sequence.chain[index - 1] if index else b""
            ids = sequence.keys[index * self.block_tokens : sequence.num_computed]
            self._publish(sequence, index, name_block(parent, ids), num_tokens)

    def release(self, sequence: Sequence) -> None:
        """The sequence gives up its room. What it computed stays known until that room is needed."""
        self.publish_tail(sequence)
        for shelf in self._shelves:
            shelf.pool.release(self._table(shelf, sequence).clear())
        sequence.num_computed = sequence.room = 0
        sequence.tail = None
        sequence.forget_drafted()

    def _table(self, shelf: _Shelf, sequence: Sequence) -> BlockTable:
        return sequence.table if shelf.window is None else sequence.window_table

    def _publish(self, sequence: Sequence, index: int, name: bytes, num_tokens: int) -> None:
        if sequence.tail and sequence.tail != name and index == sequence.tail_index:
            self.branches.remove(sequence.tail)  # the block gets a longer name
            sequence.tail = None
        for shelf in self._shelves:
            self._publish_on(shelf, sequence, index, name, num_tokens)

    def _publish_on(self, shelf: _Shelf, sequence: Sequence, index: int, name: bytes, num_tokens: int) -> None:
        is_first = shelf.pool.publish(name, self._table(shelf, sequence).block(index))
        if is_first and shelf.window is None:
            start = index * self.block_tokens
            parent = sequence.chain[index - 1] if index else b""
            self.branches.add(parent, name, sequence.keys[start : start + num_tokens])
            if num_tokens < self.block_tokens:
                sequence.tail, sequence.tail_index = name, index

    def _find(self, sequence: Sequence) -> _Found:
        """The longest known beginning. Never the last token: that one is computed, to sample what comes next."""
        usable = len(sequence.ids) - 1
        count = usable // self.block_tokens
        extend_chain(sequence.chain, sequence.keys, self.block_tokens, count)
        best = unbroken = 0
        for index, name in enumerate(sequence.chain[:count]):
            if not self._full.is_known(name):
                break
            if self._window:
                unbroken = unbroken + 1 if self._window.is_known(name) else 0
                if index + 1 - self._window.first_needed((index + 1) * self.block_tokens) > unbroken:
                    continue
            best = index + 1
        start = best * self.block_tokens
        parent = sequence.chain[best - 1] if best else b""
        partial = self.branches.find(parent, sequence.keys[start : min(start + self.block_tokens, usable)])
        if partial and (
            partial.num_tokens < max(1, self.block_tokens // _SHARED_SHARE)
            or any(shelf.pool.find(partial.name) is None for shelf in self._shelves)
        ):
            partial = None
        return _Found(best, partial)

    def _needs(self, sequence: Sequence, found: _Found) -> "list[_Need]":
        return [self._need(shelf, sequence, found) for shelf in self._shelves]

    def _have_room(self, needs: "list[_Need]", spare: int, *, is_alone: bool) -> bool:
        return all(
            shelf.pool.can_allocate(need.num_new + spare + (0 if is_alone else need.headroom), beside=need.on_device)
            for shelf, need in zip(self._shelves, needs, strict=True)
        )

    def _need(self, shelf: _Shelf, sequence: Sequence, found: _Found) -> "_Need":
        first = shelf.first_needed(found.num_tokens(self.block_tokens))
        names = sequence.chain[first : found.num_blocks]
        blocks = [shelf.pool.find(name) for name in names]
        on_device = [block for block in blocks if block is not None]
        source = shelf.pool.find(found.partial.name) if found.partial else None
        total = self.num_blocks_for(len(sequence.ids))
        if shelf.window is None:
            num_rest, headroom = total - found.num_blocks, 0
        else:  # blocks are taken as it moves on
            num_rest = 1 if source is not None else 0
            left = total - found.num_blocks
            headroom = max(0, min(left, 1 + self.num_blocks_for(shelf.window)) - num_rest)
        beside = on_device if source is None else [*on_device, source]
        return _Need(first, names, blocks, beside, source, blocks.count(None) + num_rest, headroom)

    def _furnish(self, shelf: _Shelf, sequence: Sequence, need: "_Need") -> None:
        shelf.pool.share(need.on_device)  # the source of a copy too, until it is copied
        shelf.host.hold(name for name, block in zip(need.names, need.blocks, strict=True) if block is None)
        table = self._table(shelf, sequence)
        table.begin(need.first)
        last = next((block for block in reversed(need.blocks) if block is not None), None)
        new = shelf.pool.allocate(need.num_new, after=last)
        is_window = shelf.window is not None
        fresh = iter(new)
        blocks = [next(fresh) if known is None else known for known in need.blocks]
        table.extend(blocks)
        for index, (name, known, block) in enumerate(zip(need.names, need.blocks, blocks, strict=True), need.first):
            if known is None:
                slot = shelf.host.find(name)
                assert slot is not None, "a block in host memory was given up while it was needed"
                self.transfers.append(Transfer("load", is_window, slot, block))
                self._publish_on(shelf, sequence, index, name, self.block_tokens)
        rest = list(fresh)
        if need.source is not None:
            self.transfers.append(Transfer("copy", is_window, need.source, rest[0]))
            shelf.pool.release([need.source])
        table.extend(rest)
        shelf.host.hold(())


class _Need(Struct, frozen=True):
    """What a sequence takes of one kind of layers when it is admitted."""

    first: int  # block of its table
    names: list[bytes]  # of the blocks found
    blocks: list[int | None]  # those on the device; None: in host memory
    on_device: list[int]  # to share, the source of a copy included
    source: int | None  # to copy
    num_new: int
    headroom: int  # more blocks that it will soon take
