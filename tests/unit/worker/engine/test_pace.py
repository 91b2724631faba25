"""What step times teach."""

import pytest

from worker.engine.chunk import prefill_tokens
from worker.engine.pace import Pace


def test_nothing_is_known_at_first():
    pace = Pace()
    assert (pace.decode_s(4), pace.prefill_token_s, pace.predict(9, num_rows=3, is_decode=False)) == (0, 0, 0)
    assert prefill_tokens(pace, num_decoding=4, num_prefilling=1, step_tokens=100) == 96


def test_decode_steps_are_known_by_their_rows_and_the_nearest_stands_in():
    pace = Pace()
    pace.learn(4, 0.04, num_decoding=4)
    pace.learn(16, 0.10, num_decoding=16)
    assert [pace.decode_s(rows) for rows in (1, 4, 9, 11, 99)] == [0.04, 0.04, 0.04, 0.10, 0.10]


def test_prefill_beside_decode_is_what_it_adds():
    pace = Pace()
    pace.learn(10, 0.020, num_decoding=10)
    for _ in range(50):
        pace.learn(10 + 20, 0.020 + 20 * 0.0015, num_decoding=10)
    assert pace.prefill_token_s == pytest.approx(0.0015, rel=1e-3)
    assert pace.decode_s(10) == 0.020  # mixed steps teach nothing about it


def test_one_step_that_was_held_up_changes_little():
    pace = Pace()
    for _ in range(20):
        pace.learn(4, 0.02, num_decoding=4)
    pace.learn(4, 10.0, num_decoding=4)
    assert pace.decode_s(4) < 0.04


@pytest.mark.parametrize(("fixed_s", "each_s"), [(0.0, 0.001), (0.005, 0.0002)])
def test_the_cost_of_drafts_is_found_in_its_two_parts(fixed_s, each_s):
    pace = Pace()
    pace.learn(1, 0.02, num_decoding=1)
    for step in range(60):
        num_drafts = 1 + step % 12
        pace.learn(1 + num_drafts, 0.02 + fixed_s + num_drafts * each_s, num_decoding=1, num_drafts=num_drafts)
    assert pace.draft_cost_s(1) == (pytest.approx(fixed_s, abs=3e-4), pytest.approx(each_s, rel=0.15))


def test_the_bound_on_prefill_keeps_a_step_below_twice_its_time():
    """Chunks get dearer as the prompt gets longer: the bound follows."""
    pace = Pace()
    pace.learn(15, 0.030, num_decoding=15)
    pace.learn(512, 0.4, num_decoding=0)
    done, slowest, num_steps = 0, 0.0, 0
    while done < 4096:
        count = prefill_tokens(pace, num_decoding=15, num_prefilling=1, step_tokens=512)
        seconds = 0.030 + count * (0.0010 + done * 0.0000003)
        pace.learn(15 + count, seconds, num_decoding=15)
        slowest, done, num_steps = max(slowest, seconds), done + count, num_steps + 1
    assert slowest < 2 * 0.030
    assert num_steps < 400


def test_prefill_always_moves_on():
    pace = Pace()
    pace.learn(15, 0.001, num_decoding=15)
    pace.learn(100, 10.0, num_decoding=0)
    assert prefill_tokens(pace, num_decoding=15, num_prefilling=1, step_tokens=512) == 8
    assert prefill_tokens(pace, num_decoding=15, num_prefilling=1, step_tokens=17) == 2
