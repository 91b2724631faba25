from hypothesis import given
from hypothesis import strategies as st

from worker.engine.free_runs import FreeRuns


def test_blocks_behind_the_last_come_first():
    free = FreeRuns(16)
    first = free.take(3, after=None)
    assert first == [0, 1, 2]
    assert free.take(2, after=2) == [3, 4]


def test_a_new_run_begins_in_the_middle_of_the_longest_gap():
    free = FreeRuns(16)
    free.take(4, after=None)
    second = free.take(2, after=None)
    assert second == [9, 10]
    assert free.take(5, after=3) == [4, 5, 6, 7, 8]  # the first had room to grow


def test_a_request_wider_than_any_gap_takes_several():
    free = FreeRuns(6)
    free.take(6, after=None)
    for block in (0, 1, 4, 5):
        free.add(block)
    assert sorted(free.take(4, after=None)) == [0, 1, 4, 5]


def test_new_runs_begin_near_the_old_ones_until_gaps_get_short():
    free = FreeRuns(10_000)
    firsts = [free.take(16, after=None)[0] for _ in range(16)]
    assert firsts[1] < 64 and max(firsts) < 16 * (16 + 32)
    far = free.take(300, after=None)  # more than is open
    assert far == list(range(far[0], far[0] + 300))
    assert free.take(1000, after=firsts[0] + 15)[0] == firsts[0] + 16


@given(st.integers(1, 700), st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60))
def test_is_a_set_of_blocks(num_blocks, moves):
    free, used = FreeRuns(num_blocks), []
    for is_take, number in moves:
        if is_take and free.num_free:
            after = used[number % len(used)] if used else None
            taken = free.take(1 + number % free.num_free, after)
            assert not set(taken) & set(used)
            used += taken
        elif not is_take and used:
            free.add(used.pop(number % len(used)))
        assert free.num_free == num_blocks - len(used)
        assert sorted([*free, *used]) == list(range(num_blocks))
