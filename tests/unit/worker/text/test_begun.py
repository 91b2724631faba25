"""Answers that the client began, and bounds on reasoning: what the rank is told."""

from typing import Any

import pytest

from shared.messages import Prompt
from worker.protocol import Thinking
from worker.text.errors import PromptError
from worker.text.model_text import ModelText

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def begun(content: Any = "Well, one ", **fields: Any) -> Prompt:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": content}]
    return Prompt(messages=messages, continue_final=True, **fields)


def read(text: ModelText, prompt: Prompt, said: str) -> tuple[str, str]:
    ids = text.encode(prompt)
    stream = text.stream(prompt, stop=[], prompt_ids=ids)
    pieces = [stream.feed([id]) for id in text._vocabulary.encode(said, add_special_tokens=False)]
    pieces.append(stream.finish("stop"))
    return "".join(piece.text for piece in pieces), "".join(piece.reasoning for piece in pieces)


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma", "harmony"])
def test_the_prompt_ends_where_the_answer_does(texts: dict[str, ModelText], style: str) -> None:
    text, prompt = texts[style], begun()
    assert text.render(prompt).endswith("Well, one ")
    whole = Prompt(messages=[{"role": "user", "content": "Count."}])
    assert text.render(prompt).startswith(text.render(whole)[: len(text.render(whole)) // 2])
    assert "\ue000" not in text.render(prompt)


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma", "harmony"])
def test_what_follows_is_content(texts: dict[str, ModelText], style: str) -> None:
    content, reasoning = read(texts[style], begun(), "two three")
    assert (content.strip(), reasoning) == ("two three", "")  # some tokenisers begin every text with a space


def test_a_continued_answer_of_braces_is_no_call(texts: dict[str, ModelText]) -> None:
    said = '{"name": "get_weather", "arguments": {}}'
    assert read(texts["llama3"], begun(tools=[TOOL]), said)[0] == said


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": ""}],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}],
    ],
)
def test_only_a_text_of_the_assistant_is_continued(texts: dict[str, ModelText], messages: list[dict[str, Any]]) -> None:
    with pytest.raises(PromptError):
        texts["qwen3"].encode(Prompt(messages=messages, continue_final=True))


def test_the_bound_of_a_model_with_marks(texts: dict[str, ModelText]) -> None:
    text = texts["qwen3"]
    opening, closing = (text._vocabulary.id_of(mark) for mark in ("<think>", "</think>"))
    prompt = Prompt(messages=[{"role": "user", "content": "hi"}])
    ids = text.encode(prompt)
    assert text.thinking(prompt, 9, prompt_ids=ids) == Thinking(budget=9, opening=[opening], closing=[closing])
    opened = text.thinking(prompt, 9, prompt_ids=[*ids, opening])
    assert opened is not None and opened.is_open
    assert text.thinking(Prompt(text="hi"), 9, prompt_ids=[1]) is None
    assert texts["gemma"].thinking(prompt, 9, prompt_ids=ids) is None


@pytest.mark.parametrize(("tools", "leads_to_final"), [([], True), ([TOOL], False)])
def test_the_bound_of_a_model_with_channels(
    texts: dict[str, ModelText], tools: list[dict[str, Any]], leads_to_final: bool
) -> None:
    text = texts["harmony"]
    prompt = Prompt(messages=[{"role": "user", "content": "hi"}], tools=tools)
    terms = text.thinking(prompt, 9, prompt_ids=text.encode(prompt))
    assert terms is not None
    names = ["".join(text.token_text(id) for id in ids) for ids in (terms.opening, terms.closing)]
    assert names[0].replace(" ", "") == "<|channel|>analysis<|message|>"
    tail = "<|channel|>final<|message|>" if leads_to_final else ""
    assert names[1].replace(" ", "") == "<|end|><|start|>assistant" + tail
