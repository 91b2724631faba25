"""Who holds which blocks: windows, copies of shared blocks, and the second tier, as scripts."""

import pytest

from worker.engine.cache_space import CacheSpace, WindowCap
from worker.engine.plan import Transfer
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit

BLOCK = 4


class Space(CacheSpace):
    """Sequences are computed at once."""

    def hold(self, ids, *, computed=None, spare=0):
        """Admit and compute a sequence of these tokens, all but the last unless said."""
        job = Submit(key="a", prompt=list(ids), choices=[], sample=Sample(seed=0, max_tokens=999))
        sequence = Sequence(job, Choice(0), arrival=0, context_limit=9999, block_tokens=BLOCK)
        self.open(sequence)
        assert self.admit(sequence, spare)
        sequence.num_cached = sequence.num_computed
        computed = len(ids) - 1 if computed is None else computed
        while sequence.num_computed < computed:
            stop = min(sequence.num_computed + 5, computed)
            self.grow(sequence, stop)
            self.commit(sequence, stop)
        return sequence


def letters(start, count):
    return list(range(start, start + count))


class TestCopies:
    def test_a_block_shared_in_part_is_copied_and_written_on(self):
        space = Space(20, BLOCK)
        first = space.hold(letters(0, 11))
        second = space.hold([*letters(0, 6), 90, 91, 92])
        assert second.num_cached == 6
        assert second.table.blocks[0] == first.table.blocks[0]
        assert space.transfers == [Transfer("copy", False, first.table.blocks[1], second.table.blocks[1])]

    def test_the_last_block_of_what_ended_is_found_too(self):
        space = Space(20, BLOCK)
        ended = space.hold(letters(0, 11))
        blocks = list(ended.table.blocks)
        space.release(ended)
        longer = space.hold(letters(0, 30))
        assert longer.num_cached == 10
        assert space.transfers == [Transfer("copy", False, blocks[2], longer.table.blocks[2])]

    def test_the_best_of_several_is_copied(self):
        space = Space(40, BLOCK)
        for tail in ([90, 91], [4, 91], [4, 5, 92], [4, 93]):
            space.release(space.hold([*letters(0, 4), *tail, 99]))
        assert space.hold(letters(0, 20)).num_cached == 6

    def test_few_tokens_are_not_worth_a_copy(self):
        space = CacheSpace(20, 32)
        job = Submit(key="a", prompt=letters(0, 60), choices=[], sample=Sample(seed=0, max_tokens=9))
        first = Sequence(job, Choice(0), arrival=0, context_limit=999, block_tokens=32)
        assert space.admit(first, 0)
        space.commit(first, 59)
        job.prompt = [*letters(0, 35), *letters(500, 9)]
        second = Sequence(job, Choice(0), arrival=0, context_limit=999, block_tokens=32)
        assert space.admit(second, 0)
        assert (second.num_computed, space.transfers) == (32, [])

    def test_a_block_that_grew_on_is_found_under_its_new_name_alone(self):
        space = Space(20, BLOCK)
        sequence = space.hold(letters(0, 12), computed=6)
        space.publish_tail(sequence)
        assert len(space.branches) == 2
        space.commit(sequence, 8)
        assert len(space.branches) == 2
        space.release(sequence)
        assert len(space.branches) == 2

    def test_a_copy_is_done_without_where_its_source_has_no_room_beside_it(self):
        """Only where nobody holds a block: else room may still come."""
        space = Space(4, BLOCK)
        space.release(space.hold(letters(0, 11)))
        longer = space.hold([*letters(0, 6), *letters(90, 9)])
        assert (longer.num_cached, space.transfers) == (BLOCK, [])
        space.release(longer)
        space.hold(letters(500, 3))
        with pytest.raises(AssertionError):
            space.hold([*letters(0, 6), *letters(70, 9)])

    def test_what_is_forgotten_is_not_kept_in_mind(self):
        space = Space(10, BLOCK)
        for start in range(0, 4000, 100):
            space.release(space.hold(letters(start, 30)))
        assert len(space.branches) <= 10


class TestWindows:
    cap = WindowCap(window=6, num_blocks=8)

    def test_a_sequence_keeps_its_window_and_drops_the_rest(self):
        space = Space(40, BLOCK, cap=self.cap)
        sequence = space.hold(letters(0, 60))
        assert len(sequence.table.blocks) == 15
        assert sequence.window_table.num_dropped == (59 - 6 + 1) // BLOCK
        assert len(sequence.window_table.blocks) == 2

    def test_what_ended_can_be_gone_on_with_though_its_window_moved(self):
        space = Space(40, BLOCK, cap=self.cap)
        ended = space.hold(letters(0, 60))
        space.release(ended)
        longer = space.hold(letters(0, 90))
        assert longer.num_cached == 59
        assert longer.window_table.num_dropped >= 59 // BLOCK - 2

    def test_one_that_is_alone_goes_on_with_its_window_in_the_smallest_pool(self):
        space = Space(40, BLOCK, cap=WindowCap(window=8, num_blocks=4))
        space.release(space.hold(letters(0, 31)))
        longer = space.hold([*letters(0, 28), *letters(90, 30)])
        assert longer.num_cached == 28
        assert longer.num_computed == 57

    def test_a_prefix_whose_window_is_gone_is_not_used(self):
        """The window pool is small: of the first half, only the full layers' blocks are left."""
        space = Space(40, BLOCK, cap=self.cap)
        space.release(space.hold(letters(0, 100)))
        half = [*letters(0, 50), *letters(900, 9)]
        assert space.hold(half).num_cached == 0

    def test_the_longest_prefix_with_its_window_is_used(self):
        space = Space(60, BLOCK, cap=WindowCap(window=6, num_blocks=30))
        space.release(space.hold(letters(0, 40)))
        half = [*letters(0, 21), *letters(900, 9)]
        sequence = space.hold(half)
        assert sequence.num_cached == 21
        assert {transfer.is_window for transfer in space.transfers} == {True, False}

    def test_all_comes_back(self):
        space = Space(40, BLOCK, cap=self.cap)
        sequences = [space.hold(letters(100 * number, 30)) for number in range(2)]
        for sequence in sequences:
            space.release(sequence)
        assert space.num_free == 40

    def test_a_pool_that_does_not_hold_a_window_is_refused(self):
        with pytest.raises(ValueError, match="do not hold a window of 30"):
            CacheSpace(40, BLOCK, cap=WindowCap(window=30, num_blocks=8))

    def test_room_is_what_both_kinds_have(self):
        space = Space(40, BLOCK, cap=self.cap)
        one = space.hold(letters(0, 30))
        two = space.hold(letters(100, 30))
        assert len(one.window_table.blocks) + len(two.window_table.blocks) == 4
        assert not space.can_grow(one, one.window_table.num_tokens + 5 * BLOCK)
        assert space.room(one, 999) == one.window_table.num_tokens + 4 * BLOCK


class TestSecondTier:
    def test_evicted_blocks_are_written_to_host_memory_and_come_back(self):
        space = Space(6, BLOCK, num_host_blocks=6)
        space.release(space.hold(letters(0, 21)))
        space.release(space.hold(letters(500, 21)))
        spilled = [transfer for transfer in space.transfers if transfer.kind == "spill"]
        assert len(spilled) == 5
        space.transfers.clear()
        again = space.hold(letters(0, 21))
        assert again.num_cached == 20
        loads = [transfer for transfer in space.transfers if transfer.kind == "load"]
        assert {load.source for load in loads} == {transfer.target for transfer in spilled}
        assert [load.target for load in loads] == again.table.blocks[:5]

    def test_a_block_is_written_there_once(self):
        space = Space(6, BLOCK, num_host_blocks=20)
        for _ in range(3):
            for start in (0, 500):
                space.release(space.hold(letters(start, 21)))
        assert sum(transfer.kind == "spill" for transfer in space.transfers) == 10

    def test_the_tier_is_bounded(self):
        space = Space(6, BLOCK, num_host_blocks=3)
        for start in range(0, 3000, 100):
            space.release(space.hold(letters(start, 21)))
        assert {transfer.target for transfer in space.transfers if transfer.kind == "spill"} == {0, 1, 2}

    def test_what_is_read_is_not_given_up_for_what_is_written(self):
        """Admitting the first again evicts the second, for whose blocks the tier has no more room."""
        space = Space(6, BLOCK, num_host_blocks=5)
        space.release(space.hold(letters(0, 21)))
        space.release(space.hold(letters(500, 21)))
        space.transfers.clear()
        assert space.hold(letters(0, 21)).num_cached == 20
        assert {transfer.kind for transfer in space.transfers} == {"load"}

    def test_windows_come_back_too(self):
        space = Space(12, BLOCK, cap=WindowCap(window=6, num_blocks=8), num_host_blocks=30)
        space.release(space.hold(letters(0, 41)))
        space.release(space.hold(letters(500, 41)))
        space.release(space.hold(letters(900, 41)))
        space.transfers.clear()
        assert space.hold(letters(0, 41)).num_cached == 40
        assert {(transfer.kind, transfer.is_window) for transfer in space.transfers} >= {
            ("load", True),
            ("load", False),
        }
