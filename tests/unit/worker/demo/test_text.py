"""The text that the model learns from: nothing held out is in it, and the answers can be told apart."""

import random

import pytest

from worker.demo import lessons
from worker.demo.library import ForbiddenTemplate, HeldOut, Library
from worker.demo.noise import normalise
from worker.demo.score import HELD_OUT, PRACTICE, questions, tool_questions


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture(scope="module")
def drawn(library: Library) -> list[lessons.Lesson]:
    rng = random.Random(7)
    return [lessons.draw(library, rng) for _ in range(4000)]


def test_no_held_out_question_is_in_a_lesson(drawn: list[lessons.Lesson]) -> None:
    held_out = [
        normalise(question.text)
        for path in (HELD_OUT, PRACTICE)
        for question in [*questions(path), *tool_questions(path)]
    ]
    exact, long = set(held_out), [f" {text} " for text in held_out if len(text.split()) >= 3]
    for lesson in drawn:
        for message in lesson.messages:
            if message["role"] == "user":
                text = normalise(message["content"])
                assert text not in exact
                assert not [question for question in long if question in f" {text} "]


def test_held_out_and_practice_questions_are_distinct() -> None:
    texts = [normalise(question.text) for path in (HELD_OUT, PRACTICE) for question in questions(path)]
    assert len(texts) == len(set(texts))


def test_a_question_that_is_held_out_is_refused(library: Library) -> None:
    with pytest.raises(ForbiddenTemplate) as refused:
        library.phrase("so what's a replica then", random.Random(1), wrap=0.0)
    assert "replica" in refused.value.template


def test_forbids_knows_a_question_in_another_dress() -> None:
    held_out = HeldOut(("Who am I talking to?", "Hi!"))
    assert held_out.forbids("hello, who  AM i talking to, please")
    assert held_out.forbids("hi")
    assert not held_out.forbids("hi, what is NATS")
    assert not held_out.forbids("who am i talking")


def test_what_is_expected_of_a_fact_is_in_no_other_answer(library: Library) -> None:
    answers = {fact["id"]: fact["answer"] for fact in library.facts} | {"unknown": library.unknown["answer"]}
    for question in questions():
        if question.fact in answers:
            right = [fact for fact, answer in answers.items() if question.is_right(answer)]
            assert question.fact in right
            if question.fact not in {"hello", "model"}:  # the greeting says the model's name
                assert right == [question.fact]


def test_every_fact_is_asked_about_in_many_ways(library: Library) -> None:
    rng = random.Random(5)
    asked: dict[str, set[str]] = {}
    for _ in range(4000):
        exchange = library.fact(rng)
        asked.setdefault(exchange.topic, set()).add(normalise(exchange.question))
    assert set(asked) == {fact["id"] for fact in library.facts}
    assert min(map(len, asked.values())) >= 30


def test_lessons_cover_tools_thinking_and_conversations(drawn: list[lessons.Lesson]) -> None:
    calls = [lesson for lesson in drawn if "<tool_call>" in lesson.completion]
    cities = {lesson.completion.split('": "')[-1].split('"')[0] for lesson in calls}
    assert len(calls) > 100 and len(cities) > 50
    assert (
        sum(lesson.completion.startswith("<think>\n") for lesson in drawn if lesson.thinking)
        == sum(lesson.thinking for lesson in drawn)
        > 300
    )
    assert sum(lesson.messages[-1]["role"] == "tool" for lesson in drawn) > 50
    assert sum(len(lesson.messages) >= 3 for lesson in drawn) > 300
