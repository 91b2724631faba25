"""Guessing what comes next, and knowing when it does not pay."""

import random

from tests.support.stepping import CheckingRunner, Collected, make_job
from worker.engine.engine import Engine
from worker.engine.lookup import Lookup
from worker.engine.plan import Row, Sampled, StepPlan, accept


class TestLookup:
    def test_finds_what_stood_behind_the_last_place_like_this_one(self):
        ids = [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 1, 2, 3]
        assert Lookup().find(ids, 2) == (6, 7)

    def test_what_repeats_goes_on_repeating(self):
        assert Lookup().find([9, 1, 2, 1, 2, 1, 2], 5) == (1, 2, 1, 2, 1)

    def test_finds_nothing_where_nothing_is_alike(self):
        lookup = Lookup()
        assert [lookup.find(ids, 4) for ids in ([], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5])] == [()] * 5

    def test_grows_with_the_sequence(self):
        generator = random.Random(3)
        ids, lookup = [], Lookup()
        for _ in range(400):
            ids.append(generator.randrange(4))
            assert lookup.find(ids, 3) == Lookup().find(ids, 3)

    def test_a_long_prompt_is_taken_in_over_several_steps(self):
        ids = [*range(10_000), 1, 2, 3]
        lookup = Lookup()
        assert [lookup.find(ids, 2) for _ in range(3)] == [(), (), (4, 5)]


def test_a_row_brings_its_tokens_up_to_the_first_wrong_draft():
    tokens = [Sampled(id) for id in (5, 6, 7, 8)]
    assert [one.id for one in accept((5, 6, 7), tokens)] == [5, 6, 7, 8]
    assert [one.id for one in accept((5, 9, 7), tokens)] == [5, 6]
    assert [one.id for one in accept((9, 6, 7), tokens)] == [5]


class Timed(CheckingRunner):
    """A runner that says what `text` says, and takes so long: for a step, for each row, for each draft."""

    def __init__(self, text, *, step_s=20.0, row_s=0.5, draft_s=0.7):
        super().__init__(2000, 4, 1000)
        self.text = text
        self.costs = step_s, row_s, draft_s
        self.now = 0.0
        self.num_drafts = 0

    def run(self, plan: StepPlan) -> list[Sampled]:
        step_s, row_s, draft_s = self.costs
        self.now += step_s + len(plan.rows) * row_s + plan.num_drafts * draft_s
        self.num_drafts += plan.num_drafts
        return [Sampled(self.text(row, position)) for row in plan.rows for position in plan.kept(row)]

    def _check(self, row: Row) -> None:
        """The contents are not what is tested here."""


def decode_s(text, *, speculate, num_jobs=1, num_tokens=400, **costs):
    """Seconds from the end of prefill to the end of all jobs, and the runner."""
    runner = Timed(text, **costs)
    engine = Engine(
        runner,
        num_blocks=2000,
        block_tokens=4,
        slots=32,
        prefill_tokens=4096,
        context_limit=4000,
        speculate=speculate,
        clock=lambda: runner.now,
    )
    for number in range(num_jobs):
        prompt = [(number * 37 + index * index) % 1000 for index in range(90)]
        engine.submit(make_job(str(number), prompt, num_tokens))
    collected = Collected()
    collected.take(engine.step())
    start = runner.now
    while engine.has_work:
        collected.take(engine.step())
    assert all(len(ids) == num_tokens for ids in collected.ids.values())
    return runner.now - start, runner


def repeat(row, position):
    """Over and over the same forty tokens."""
    return position % 40


def never(row, position):
    """The same three tokens come up time and again, and what follows is always another."""
    return (position // 4 * 7919 + int(row.sequence.key)) % 997 if position % 4 == 3 else position % 4


def nothing(row, position):
    """No two places are alike."""
    return (position * position * 31 + position * int(row.sequence.key)) % 997


def test_text_that_repeats_is_said_faster():
    plain, _ = decode_s(repeat, speculate=False)
    guessed, _ = decode_s(repeat, speculate=True)
    assert plain > 4 * guessed


def test_text_that_repeats_is_said_faster_in_a_batch():
    plain, _ = decode_s(repeat, speculate=False, num_jobs=8)
    guessed, _ = decode_s(repeat, speculate=True, num_jobs=8)
    assert plain > 2 * guessed


def test_guesses_that_never_come_true_cost_next_to_nothing():
    for num_jobs in (1, 4, 16):
        plain, _ = decode_s(never, speculate=False, num_jobs=num_jobs)
        guessed, runner = decode_s(never, speculate=True, num_jobs=num_jobs)
        assert runner.num_drafts > 0
        assert guessed < plain / 0.97


def test_where_drafts_are_dear_even_right_ones_are_left_out():
    for costs in ({"draft_s": 30.0}, {"num_jobs": 16, "draft_s": 4.0}):
        plain, _ = decode_s(repeat, speculate=False, **costs)
        guessed, _ = decode_s(repeat, speculate=True, **costs)
        assert guessed < plain / 0.95


def test_without_a_place_like_this_one_there_is_no_guess():
    plain, _ = decode_s(nothing, speculate=False, num_tokens=200)
    guessed, runner = decode_s(nothing, speculate=True, num_tokens=200)
    assert runner.num_drafts == 0
    assert guessed == plain


def test_guessing_begins_again_when_the_text_begins_to_repeat():
    def late(row, position):
        return never(row, position) if position < 300 else repeat(row, position)

    plain, _ = decode_s(late, speculate=False, num_tokens=1200)
    guessed, _ = decode_s(late, speculate=True, num_tokens=1200)
    assert plain > 2 * guessed


def test_no_guess_goes_past_the_end_or_into_a_step_with_prefill():
    runner = Timed(repeat)
    engine = Engine(
        runner,
        num_blocks=2000,
        block_tokens=4,
        slots=4,
        prefill_tokens=64,
        context_limit=4000,
        clock=lambda: runner.now,
    )
    plans = []
    run = runner.run
    runner.run = lambda plan: (plans.append(plan), run(plan))[1]
    engine.submit(make_job("0", list(range(90)), 120))
    for _ in range(12):
        engine.step()
    engine.submit(make_job("1", list(range(500, 900)), 4))
    while engine.has_work:
        engine.step()
    assert any(plan.num_drafts for plan in plans)
    for plan in plans:
        assert not plan.num_drafts or plan.is_decode
        for row in plan.rows:
            assert row.stop < row.sequence.max_ids
