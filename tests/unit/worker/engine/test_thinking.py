"""Bounds on reasoning: the closing mark is written where the budget is spent, and nothing else changes."""

import pytest

from tests.support.stepping import CheckingRunner, drain, make_job, next_token
from worker.engine.engine import Engine
from worker.engine.thinking import ThinkingBudget
from worker.protocol import Choice, Thinking

VOCABULARY = 50
PROMPT = [(7 + index * index) % VOCABULARY for index in range(13)]


def make_engine(**options):
    runner = CheckingRunner(40, 4, VOCABULARY)
    sizes = {"num_blocks": 40, "block_tokens": 4, "slots": 4, "prefill_tokens": 10, "context_limit": 100}
    return Engine(runner, **(sizes | options))


def expect(num_tokens, *, forced_at, closing):
    ids = list(PROMPT)
    while len(ids) < len(PROMPT) + num_tokens:
        ids += closing if len(ids) == len(PROMPT) + forced_at else [next_token(ids, VOCABULARY)]
    return ids[len(PROMPT) : len(PROMPT) + num_tokens]


def follow(terms, ids):
    budget = ThinkingBudget(terms)
    for index, id in enumerate(ids):
        if budget.due:
            return index, budget.due
        budget.see(id)
    return len(ids), budget.due


@pytest.mark.parametrize(
    ("terms", "ids", "met"),
    [
        (Thinking(budget=4, opening=[1], closing=[2], is_open=True), [9, 9, 9, 9], (3, [2])),
        (Thinking(budget=4, opening=[1], closing=[2], is_open=True), [9, 2, 9, 9, 9, 9], (6, [])),  # ended by itself
        (Thinking(budget=4, opening=[1], closing=[2]), [9, 9, 9, 9, 9, 9], (6, [])),  # never began
        (Thinking(budget=4, opening=[1], closing=[2]), [9, 1, 9, 9, 9], (4, [2])),
        (Thinking(budget=4, opening=[1], closing=[2]), [1, 9, 2, 9, 1, 9], (5, [2])),  # blocks add up
        (Thinking(budget=1, opening=[1], closing=[2, 3], is_open=True), [9], (0, [2, 3])),
        (Thinking(budget=2, opening=[5, 6, 7], closing=[2]), [5, 5, 6, 7, 9], (4, [2])),
        (Thinking(budget=2, opening=[5, 6, 7], closing=[2]), [5, 6, 5, 6, 7], (5, [2])),
    ],
)
def test_where_a_budget_is_met(terms, ids, met):
    assert follow(terms, ids) == met


@pytest.mark.parametrize("closing", [[49], [49, 48, 47]])
@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_the_text_before_the_bound_is_as_without_and_goes_on_behind_it(budget, speculate, closing):
    assert 49 not in expect(20, forced_at=99, closing=[])
    engine = make_engine(speculate=speculate)
    job = make_job("a", PROMPT, 20, n=2)
    job.thinking = Thinking(budget=budget, opening=[VOCABULARY], closing=closing, is_open=True)
    engine.submit(job)
    collected = drain(engine)
    wanted = expect(20, forced_at=budget - 1, closing=closing)
    assert collected.ids == {("a", 0): wanted, ("a", 1): wanted}
    assert collected.finish["a", 0] == "length"
    assert wanted.index(49) == budget - 1


@pytest.mark.parametrize("num_delivered", range(9))
def test_a_resumed_choice_goes_on_within_the_mark_too(num_delivered):
    closing = [49, 48, 47]
    whole = expect(20, forced_at=4, closing=closing)
    engine = make_engine()
    job = make_job("a", PROMPT, 20)
    job.thinking = Thinking(budget=5, opening=[VOCABULARY], closing=closing, is_open=True)
    job.choices = [Choice(0, whole[:num_delivered])]
    engine.submit(job)
    collected = drain(engine)
    assert collected.starts["a", 0] == num_delivered
    assert whole[:num_delivered] + collected.ids["a", 0] == whole


@pytest.mark.parametrize("max_tokens", range(1, 8))
def test_the_token_limit_cuts_the_mark(max_tokens):
    closing = [49, 48, 47]
    engine = make_engine()
    job = make_job("a", PROMPT, max_tokens)
    job.thinking = Thinking(budget=3, opening=[VOCABULARY], closing=closing, is_open=True)
    engine.submit(job)
    collected = drain(engine)
    assert collected.ids["a", 0] == expect(max_tokens, forced_at=2, closing=closing)
    assert collected.finish["a", 0] == "length"


def test_a_mark_before_the_first_token_leaves_the_count_of_cached_tokens_true():
    engine = make_engine()
    engine.submit(make_job("a", PROMPT, 2))
    drain(engine)
    job = make_job("b", PROMPT, 4)
    job.thinking = Thinking(budget=1, opening=[VOCABULARY], closing=[49], is_open=True)
    engine.submit(job)
    assert drain(engine).cached["b", 0] == 13
