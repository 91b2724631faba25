"""The channels of gpt-oss."""

import json

import pytest

from shared.messages import Prompt, ToolCall
from tests.support.calls import join
from worker.text.model_text import ModelText

TOOLS = [{"type": "function", "function": {"name": "weather"}}]
ANALYSIS = "<|channel|>analysis<|message|>Let me see.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is cold."
CALL = '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Oslo"}'


def answer(text: ModelText, output: str, tools: bool = True, stop: str = "") -> tuple[str, str, list[ToolCall], str]:
    prompt = Prompt(messages=[{"role": "user", "content": "one"}], tools=TOOLS if tools else [])
    stream = text.stream(prompt, stop=[stop], prompt_ids=text.encode(prompt))
    ids = text.encode(Prompt(text=output))[1:]
    pieces = [*(stream.feed([id]) for id in ids), stream.finish("stop")]
    calls = join(call for piece in pieces for call in piece.tool_calls)
    return "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces), calls, pieces[-1].finish or ""


def test_analysis_and_answer(texts: dict[str, ModelText]) -> None:
    assert answer(texts["harmony"], ANALYSIS + FINAL + "<|return|>") == ("It is cold.", "Let me see.", [], "stop")


def test_cut_while_thinking(texts: dict[str, ModelText]) -> None:
    assert answer(texts["harmony"], "<|channel|>analysis<|message|>Let me") == ("", "Let me", [], "stop")


@pytest.mark.parametrize("end", ["", "<|call|>"])
def test_a_call(texts: dict[str, ModelText], end: str) -> None:
    preamble = "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
    content, reasoning, calls, finish = answer(texts["harmony"], ANALYSIS + preamble + CALL + end)
    assert (content, reasoning, finish) == ("One moment.", "Let me see.", "tool_calls")
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", {"city": "Oslo"})]


def test_what_is_no_call_is_content(texts: dict[str, ModelText]) -> None:
    assert answer(texts["harmony"], CALL.partition("{")[0] + "none")[:3] == ("none", "", [])
    assert answer(texts["harmony"], CALL, tools=False)[:3] == ('{"city":"Oslo"}', "", [])


def test_stop_strings(texts: dict[str, ModelText]) -> None:
    assert answer(texts["harmony"], ANALYSIS + FINAL, stop="cold")[:2] == ("It is ", "Let me see.")
    assert answer(texts["harmony"], ANALYSIS + FINAL, stop="me")[:2] == ("It is cold.", "Let me see.")


def test_a_model_that_does_not_keep_to_the_format(texts: dict[str, ModelText]) -> None:
    assert answer(texts["harmony"], "It is cold.\n")[:2] == ("It is cold.\n", "")
