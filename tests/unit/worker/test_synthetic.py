"""The back end without a model: what it says and when."""

import json
from pathlib import Path

import pytest

from worker.engine.plan import Row, StepPlan
from worker.engine.sequence import Sequence
from worker.engine.synthetic import SyntheticRunner, plain_words
from worker.protocol import Choice, Sample, Submit


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def sequence(prompt: int = 3, *, choice: int = 0, resume: list[int] | None = None, **sample: object) -> Sequence:
    values: dict[str, object] = {"seed": 1, "max_tokens": 100} | sample
    job = Submit(key="j", prompt=[1] * prompt, choices=[], sample=Sample(**values))  # type: ignore[arg-type]
    return Sequence(job, Choice(choice, resume or []), arrival=0, context_limit=1000, block_tokens=32)


def say(runner: SyntheticRunner, *sequences: Sequence, prefill: int = 0) -> list[int]:
    rows = [Row(each, len(each.ids) - 1, len(each.ids)) for each in sequences]
    if prefill:
        rows.append(Row(sequence(prefill + 1), 0, prefill))
    return [sampled.id for sampled in runner.run(StepPlan(tuple(rows)))]


def test_every_word_is_said_and_nothing_else() -> None:
    runner = SyntheticRunner([7, 8, 9], 10)
    said = {say(runner, sequence(seed=seed))[0] for seed in range(50)}
    assert said == {7, 8, 9}


def test_seed_choice_and_position_decide_and_nothing_else() -> None:
    runner = SyntheticRunner(list(range(1000)), 1000)
    base = say(runner, sequence())
    assert say(runner, sequence(prompt=20), sequence(choice=1)) == [*base, *say(runner, sequence(choice=1))]
    others = [sequence(seed=2), sequence(choice=1), sequence(resume=[5])]
    assert base[0] not in say(runner, *others)
    assert len(set(say(runner, *others))) == 3


def test_the_pace_is_of_each_sequence() -> None:
    clock = Clock()
    runner = SyntheticRunner([1], 10, tokens_per_s=20, prefill_tokens_per_s=1000, clock=clock, sleep=clock.sleep)
    say(runner, sequence(), sequence(), sequence())
    assert clock.now == pytest.approx(0.05)
    say(runner, sequence(), prefill=100)
    assert clock.now == pytest.approx(0.05 + 0.05 + 0.1)


def test_without_a_pace_it_never_sleeps() -> None:
    runner = SyntheticRunner([1], 10, sleep=lambda seconds: pytest.fail("slept"))
    assert say(runner, sequence(), prefill=10) == [1]


def test_it_is_certain_when_asked_for_log_probabilities() -> None:
    row = Row(sequence(logprobs=2), 2, 3)
    (sampled,) = SyntheticRunner([4], 10).run(StepPlan((row,)))
    assert sampled.logprob is not None
    assert (sampled.logprob.id, sampled.logprob.logprob, sampled.logprob.top) == (4, 0.0, [(4, 0.0)])


@pytest.mark.parametrize("is_list", [False, True])
def test_plain_words_are_neither_special_nor_pieces(tmp_path: Path, is_list: bool) -> None:
    tokens = ["<|end|>", "Ġthe", "▁sea", "Ã", "ab", "a1", "x", "think"]
    vocabulary = [[token, 0.0] for token in tokens] if is_list else {token: i for i, token in enumerate(tokens)}
    added = [{"id": 0, "content": "<|end|>"}, {"id": 7, "content": "think"}]
    content = {"model": {"vocab": vocabulary}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert plain_words(tmp_path) == [1, 2, 4]


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no plain words"):
        SyntheticRunner([], 10)
