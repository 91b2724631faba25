"""With images too, greedy output in float32 equals transformers' own `generate`, whatever else is in the batch."""

import pytest

from tests.support.stepping import Collected
from tests.support.vision import picture, user
from worker.engine.engine import Engine
from worker.models.image_layout import Fixed
from worker.protocol import Choice

ONE = [user("What is ", picture(1), "this?")]
TWO = [user(picture(1), "and", picture(2, 64, 20), "compare them")]
TEXT = [{"role": "user", "content": "What is the capital of France?"}]
LATER = [
    {"role": "user", "content": "A river"},
    {"role": "assistant", "content": "runs to the sea"},
    user("and", picture(3, 30, 50)),
]


def drain(
    engine: Engine,
    into: Collected | None = None,
    *,
    max_steps: int = 2000,
    ends: bool = True,
) -> Collected:
    """Step until there is no work; without `ends` at most so many steps."""
    collected = into or Collected()
    for _ in range(max_steps):
        if not engine.has_work:
            return collected
        collected.take(engine.step())
    assert not ends, "still at work"
    return collected


def test_the_reference_depends_on_the_image(subject):
    outputs = [subject.expect([user("What is ", picture(seed), "this?")]) for seed in (1, 4)]
    assert outputs[0] != outputs[1]
    assert all(len(set(output)) >= 4 for output in outputs)


def test_alone(subject):
    for messages in (ONE, TWO, TEXT, LATER):
        engine = subject.engine()
        engine.submit(subject.job("a", messages))
        assert drain(engine).ids["a", 0] == subject.expect(messages)


def test_other_families_in_small_chunks(another):
    engine = another.engine(step=7)
    for key, messages in {"two": TWO, "text": TEXT}.items():
        engine.submit(another.job(key, messages))
    collected = drain(engine)
    assert collected.ids["two", 0] == another.expect(TWO)
    assert collected.ids["text", 0] == another.expect(TEXT)


def test_mixed_with_text_and_joined_by_others(subject):
    engine = subject.engine()
    conversations = {"one": ONE, "text": TEXT, "two": TWO, "later": LATER}
    collected = None
    for key, messages in conversations.items():
        engine.submit(subject.job(key, messages))
        collected = drain(engine, collected, max_steps=2, ends=False)
    collected = drain(engine, collected)
    for key, messages in conversations.items():
        assert collected.ids[key, 0] == subject.expect(messages)


def test_chunks_that_cut_images_anywhere(subject):
    for step in (3, 10):
        engine = subject.engine(step=step, slots=2)
        engine.submit(subject.job("two", TWO))
        engine.submit(subject.job("one", ONE))
        collected = drain(engine)
        assert collected.ids["two", 0] == subject.expect(TWO)
        assert collected.ids["one", 0] == subject.expect(ONE)


def test_a_step_with_room_for_every_image(subject):
    engine = subject.engine(step=300)
    for key, messages in {"one": ONE, "two": TWO}.items():
        engine.submit(subject.job(key, messages))
    collected = drain(engine)
    assert collected.ids["one", 0] == subject.expect(ONE)
    assert collected.ids["two", 0] == subject.expect(TWO)


def test_the_same_image_again_is_found_and_another_is_not(subject):
    other = [user("What is ", picture(4), "this?")]
    engine = subject.engine()
    engine.submit(subject.job("first", ONE))
    drain(engine)
    engine.submit(subject.job("again", ONE))
    engine.submit(subject.job("other", other))
    collected = drain(engine)
    prompt = subject.job("x", ONE)
    start = prompt.images[0].runs[0][0]
    assert collected.cached["again", 0] == len(prompt.prompt) - 1
    assert collected.cached["other", 0] <= start
    assert collected.ids["again", 0] == subject.expect(ONE)
    assert collected.ids["other", 0] == subject.expect(other)


def test_a_second_turn_finds_the_first_ones_image(subject):
    engine = subject.engine()
    engine.submit(subject.job("first", ONE))
    drain(engine)
    messages = [*ONE, {"role": "assistant", "content": "A boat."}, user("and ", picture(2, 64, 20), "?")]
    engine.submit(subject.job("second", messages))
    collected = drain(engine)
    job = subject.job("x", messages)
    first, count = job.images[0].runs[0]
    assert first + count <= collected.cached["second", 0]
    assert collected.ids["second", 0] == subject.expect(messages)


def test_preemption_computes_images_again(subject):
    one, two = ([{"role": "system", "content": word}, *rest] for word, rest in (("Be short.", ONE), ("Rhyme!", TWO)))
    lengths = [len(subject.job("x", messages).prompt) for messages in (one, two)]
    # Time stands still: how far prefill comes beside decode, and so who is in whose way, is not left to the machine.
    engine = subject.engine(num_blocks=(sum(lengths) + 24) // 4, clock=lambda: 0.0)
    for key, messages in {"one": one, "two": two}.items():
        engine.submit(subject.job(key, messages, 24))
    waited = []
    collected = None
    while engine.has_work:
        step = engine.step()
        collected = collected or Collected()
        collected.take(step)
        waited.append(step.waiting if collected.ids.get(("two", 0)) else 0)
        subject.sight.forget()
    assert any(waited), "nothing was preempted"
    assert collected.ids["one", 0] == subject.expect(one, 24)
    assert collected.ids["two", 0] == subject.expect(two, 24)


def test_several_choices_and_a_resumed_one(subject):
    expected = subject.expect(TWO)
    engine = subject.engine()
    engine.submit(subject.job("n", TWO, n=3))
    collected = drain(engine)
    assert [collected.ids["n", index] for index in range(3)] == [expected] * 3
    job = subject.job("resumed", TWO)
    job.choices = [Choice(0, expected[:4])]
    engine = subject.engine()
    engine.submit(job)
    assert drain(engine).ids["resumed", 0] == expected[4:]


def test_guessed_tokens_change_nothing(subject):
    engine = subject.engine()
    engine.submit(subject.job("one", ONE, 40))
    assert drain(engine).ids["one", 0] == subject.expect(ONE, 40)


def test_a_wrong_grid_fails_the_job_alone(subject):
    if isinstance(subject.sight.vision.rule, Fixed):
        pytest.skip("every image is the same")
    job = subject.job("wrong", ONE)
    rows, columns = job.images[0].grid
    job.images[0].grid = (columns + 1, rows)
    engine = subject.engine()
    engine.submit(job)
    engine.submit(subject.job("one", ONE))
    collected = drain(engine)
    assert collected.refused["wrong"].kind == "engine_error"
    assert collected.ids["one", 0] == subject.expect(ONE)
