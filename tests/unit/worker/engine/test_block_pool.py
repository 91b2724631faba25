import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.blocks import BlockPool
from worker.engine.errors import OutOfBlocks
from worker.engine.prefix import extend_chain


def test_a_chain_names_full_blocks_by_all_that_stands_before_them():
    one, other = [], []
    extend_chain(one, [1, 2, 3, 4, 5], 2, 2)
    extend_chain(other, [9, 2, 3, 4], 2, 2)
    assert len(one) == 2
    assert not set(one) & set(other)  # equal second blocks, unequal beginnings


def test_released_blocks_stay_known_until_their_room_is_needed():
    pool = BlockPool(4, 2)
    blocks = pool.allocate(2)
    pool.publish(b"a", blocks[0])
    pool.publish(b"b", blocks[1])
    pool.release(blocks)
    assert pool.num_free == 4
    assert [pool.find(name) for name in (b"a", b"b", b"c")] == [*blocks, None]
    pool.allocate(3)
    assert [pool.find(name) for name in (b"a", b"b")] == [blocks[0], None]  # shortened from its end


def test_matched_blocks_that_are_idle_count_against_an_allocation_beside_them():
    pool = BlockPool(3, 2)
    blocks = pool.allocate(1)
    pool.publish(b"a", blocks[0])
    pool.release(blocks)
    assert pool.can_allocate(3)
    assert not pool.can_allocate(3, beside=blocks)
    assert pool.can_allocate(2, beside=blocks)


def test_too_many_blocks_are_refused_and_nothing_is_taken():
    pool = BlockPool(3, 2)
    pool.allocate(2)
    with pytest.raises(OutOfBlocks) as caught:
        pool.allocate(2)
    assert (caught.value.wanted, caught.value.free) == (2, 1)
    assert pool.num_free == 1


def test_a_second_release_is_caught():
    pool = BlockPool(2, 2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share, publish and go; a plain model says what the pool must hold."""

    num_blocks = 12

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(self.num_blocks, 2)
        self.held: list[list[int]] = []
        self.contents: dict[bytes, int] = {}
        self.names = 0

    @rule(count=st.integers(1, 5), near=st.booleans())
    def allocate(self, count, near):
        after = self.held[-1][-1] if near and self.held else None
        if self.pool.can_allocate(count):
            blocks = self.pool.allocate(count, after=after)
            assert not set(blocks) & {block for table in self.held for block in table}
            self.contents = {name: block for name, block in self.contents.items() if block not in blocks}
            self.held.append(blocks)
        else:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count, after=after)

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 99))
    def publish(self, number):
        block = self.held[number % len(self.held)][0]
        if block not in self.contents.values():
            self.names += 1
            self.contents[str(self.names).encode()] = block
        self.pool.publish(str(self.names).encode(), block)

    @precondition(lambda self: self.contents)
    @rule(number=st.integers(0, 99))
    def share(self, number):
        name = sorted(self.contents)[number % len(self.contents)]
        block = self.pool.find(name)
        if block is not None:
            assert block == self.contents[name]
            self.pool.share([block])
            self.held.append([block])

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 99))
    def release(self, number):
        self.pool.release(self.held.pop(number % len(self.held)))

    @invariant()
    def counts_are_right(self):
        used = {block for table in self.held for block in table}
        assert self.pool.num_free == self.num_blocks - len(used)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
