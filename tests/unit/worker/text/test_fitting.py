"""Prompts that are too long: refused early, or shortened."""

from typing import Any

import pytest

from shared.messages import Prompt
from worker.text.errors import PromptTooLong
from worker.text.fitting import check_length, shorten
from worker.text.model_text import ModelText


def letters(text: str) -> list[int]:
    return [ord(char) for char in text]


def test_a_text_that_may_fit_is_not_read_here() -> None:
    check_length("x" * 80, 10, lambda text: pytest.fail("read"), "prompt")


def test_a_text_that_cannot_fit_is_read_no_further_than_needed() -> None:
    read: list[int] = []

    def encode(text: str) -> list[int]:
        read.append(len(text))
        return letters(text)

    with pytest.raises(PromptTooLong) as caught:
        check_length("x" * 1_000_000, 1000, encode, "messages")
    assert read == [8000]
    assert (caught.value.tokens, caught.value.limit, caught.value.param) == (8000, 1000, "messages")


def test_a_long_text_of_few_tokens_passes() -> None:
    check_length("x" * 100_000, 1000, lambda text: [1] * (len(text) // 100), "prompt")


def conversation(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"{place}"} for place, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "room", "kept"),
    [
        ("suaua", 9, "01234"),
        ("suaua", 4, "034"),
        ("suaua", 3, "034"),
        ("suaua", 2, "04"),
        ("suaua", 1, "04"),  # as short as it can be
        ("suatatu", 4, "06"),
        ("suatat", 4, "0245"[:1] + "45"),
        ("ssuu", 3, "013"),
        ("uau", 2, "2"),
        ("s", 0, "0"),
    ],
)
def test_the_oldest_go_first(roles: str, room: int, kept: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    prompt = Prompt(messages=conversation(*(names[role] for role in roles)), tool_choice="none")
    short = shorten(prompt, room, lambda one: [0] * len(one.messages or []))
    assert "".join(one["content"] for one in short.messages or []) == kept
    assert short.tool_choice == "none"


def test_a_model_reads_what_fits(texts: dict[str, ModelText]) -> None:
    text = texts["qwen3"]
    messages = [{"role": "user" if place % 2 == 0 else "assistant", "content": "river " * 20} for place in range(41)]
    whole = Prompt(messages=messages, shorten=True)
    last = text.encode(Prompt(messages=messages[-1:]))
    assert len(text.encode(whole)) > 600
    assert 600 - 3 * len(last) < len(text.encode(whole, limit=600, reserve=100)) <= 500
    assert text.encode(whole, limit=len(last), reserve=1) == last
    with pytest.raises(PromptTooLong):
        text.encode(Prompt(text="river " * 100_000), limit=600)
