"""Tool calls in a stream: whole calls, stable ids, nothing lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Prompt, ToolCall
from tests.support.calls import join
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.model_text import ModelText
from worker.text.tools import CONVENTIONS, detect, named
from worker.text.vocabulary import Vocabulary

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"days": {"type": "integer"}}}}}
]
ASK = Prompt(messages=[{"role": "user", "content": "one"}], tools=TOOLS)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 🙂"}}\n</tool_call>'


def answer(
    text: ModelText, output: str, *, prompt: Prompt = ASK, finish: str = "stop", stop: list[str] | None = None
) -> tuple[str, list[ToolCall], str | None]:
    """Content, calls and finish reason, after `output` came token by token."""
    stream = text.stream(prompt, stop=stop or [], prompt_ids=text.encode(prompt))
    ids = [id for id in text.encode(Prompt(text=output)) if text.token_text(id) != "<s>"]
    pieces = [*(stream.feed([id]) for id in ids), stream.finish(finish)]
    calls = join(call for piece in pieces for call in piece.tool_calls)
    return "".join(piece.text for piece in pieces), calls, pieces[-1].finish


def plain(calls: list[ToolCall]) -> list[tuple[int, str, Any]]:
    return [(call.index, call.name, json.loads(call.arguments)) for call in calls]


def test_calls_between_text(texts: dict[str, ModelText]) -> None:
    tags = "<tool_call>\n<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    output = f"Let me see.\n\n{CALL}\n{tags}\nSo."
    content, calls, finish = answer(texts["qwen3"], output)
    assert content == "Let me see.So."
    assert plain(calls) == [(0, "weather", {"city": "Köln 🙂"}), (1, "weather", {"days": 3})]
    assert finish == "tool_calls"


def test_a_call_comes_as_soon_as_it_is_closed(texts: dict[str, ModelText]) -> None:
    text = texts["qwen3"]
    stream = text.stream(ASK, stop=[], prompt_ids=text.encode(ASK))
    calls = join(stream.feed(text.encode(Prompt(text=CALL))).tool_calls)
    assert plain(calls) == [(0, "weather", {"city": "Köln 🙂"})]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(messages=ASK.messages, tools=TOOLS, parallel_tool_calls=False),
        Prompt(messages=ASK.messages, tools=TOOLS, tool_choice="=weather"),
    ],
)
def test_an_answer_of_one_call_ends_with_it(texts: dict[str, ModelText], prompt: Prompt) -> None:
    text = texts["qwen3"]
    first, rest = text.encode(Prompt(text=CALL)), text.encode(Prompt(text=CALL + "END"))
    stream = text.stream(prompt, stop=["END"], prompt_ids=text.encode(prompt))
    piece = stream.feed([*first, *rest])
    assert piece.is_over and piece.stopped is None and piece.consumed < len(first)
    assert plain(join(piece.tool_calls)) == [(0, "weather", {"city": "Köln 🙂"})]
    assert stream.feed(rest).consumed == 0
    assert (stream.finish("stop").finish, stream.finish("length").finish) == ("tool_calls", "tool_calls")


def test_no_call_is_seen_where_none_is_allowed(texts: dict[str, ModelText]) -> None:
    prompt = Prompt(messages=ASK.messages, tools=TOOLS, tool_choice="none")
    assert answer(texts["qwen3"], CALL, prompt=prompt) == (CALL, [], "stop")


def test_tools_that_a_message_shows_can_be_called(texts: dict[str, ModelText]) -> None:
    prompt = Prompt(messages=ASK.messages, shown_tools=TOOLS)
    assert "weather" not in texts["qwen3"].render(prompt)
    assert [call.name for call in answer(texts["qwen3"], CALL, prompt=prompt)[1]] == ["weather"]


def test_arguments_come_as_they_grow(texts: dict[str, ModelText]) -> None:
    text = texts["qwen3"]
    stream = text.stream(ASK, stop=[], prompt_ids=text.encode(ASK))
    pieces = [piece for id in text.encode(Prompt(text=CALL)) for piece in stream.feed([id]).tool_calls]
    assert len(pieces) > 5 and pieces[0].name == "weather"
    assert plain(join(pieces)) == [(0, "weather", {"city": "Köln 🙂"})]


def test_ids_are_stable_and_distinct(texts: dict[str, ModelText]) -> None:
    first, again = (answer(texts["qwen3"], CALL + CALL)[1] for _ in range(2))
    assert [call.id for call in first] == [call.id for call in again]
    other = Prompt(messages=[{"role": "user", "content": "two"}], tools=TOOLS)
    later = answer(texts["qwen3"], CALL, prompt=other)[1]
    assert len({call.id for call in [*first, *later]}) == 3  # also distinct from turn to turn
    assert all(call.id.startswith("call_") and len(call.id) == 29 for call in first)


@pytest.mark.parametrize(
    "output",
    [
        'Here:\n\n<tool_call>\n{"name": "weather", "arguments": }\n</tool_call>\n\nSorry.',
        "<tool_call>\nno call at all</tool_call>",
        '\n<tool_call>{"name": "wea',
        "</tool_call> alone",
    ],
)
def test_what_is_no_call_is_content(texts: dict[str, ModelText], output: str) -> None:
    assert answer(texts["qwen3"], output) == (output, [], "stop")


def test_an_unclosed_call_counts_if_it_is_whole(texts: dict[str, ModelText]) -> None:
    content, calls, finish = answer(texts["qwen3"], '<tool_call>{"name": "weather"}<|im_end|>')
    assert (content, len(calls), finish) == ("", 1, "tool_calls")


def test_a_cut_answer_says_so(texts: dict[str, ModelText]) -> None:
    content, calls, finish = answer(texts["qwen3"], CALL + "<tool_call>", finish="length")
    assert (content, len(calls), finish) == ("<tool_call>", 1, "length")


def test_without_tools_nothing_is_recognised(texts: dict[str, ModelText]) -> None:
    prompt = Prompt(messages=ASK.messages)
    assert answer(texts["qwen3"], CALL, prompt=prompt) == (CALL, [], "stop")


def test_no_calls_inside_reasoning(texts: dict[str, ModelText]) -> None:
    content, calls, _ = answer(texts["qwen3"], f"<think>{CALL}</think>done")
    assert (content, calls) == ("done", [])


def test_stop_strings_do_not_see_calls(texts: dict[str, ModelText]) -> None:
    content, calls, finish = answer(texts["qwen3"], f"a{CALL}\nb Köln c", stop=["Köln", "\n"])
    assert (content, len(calls), finish) == ("ab ", 1, "tool_calls")


def test_marks_in_plain_text(tmp_path: Path) -> None:
    """Fine-tunes that were taught Hermes calls without tokens for them."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    content, calls, _ = answer(text, f"a < b\n{CALL}<tool_")
    assert content == "a < b<tool_"
    assert plain(calls) == [(0, "weather", {"city": "Köln 🙂"})]


def test_mistral(texts: dict[str, ModelText]) -> None:
    text = texts["mistral"]
    output = '[TOOL_CALLS][{"name": "weather", "arguments": {"days": 3}}]</s>'
    content, calls, finish = answer(text, output)
    assert (content, plain(calls), finish) == ("", [(0, "weather", {"days": 3})], "tool_calls")
    assert len(calls[0].id) == 9 and calls[0].id.isalnum()
    output = 'I see[TOOL_CALLS]weather[ARGS]{"days": 3}[TOOL_CALLS]weather[ARGS]{"days": 4}</s>'
    content, calls, _ = answer(text, output)
    assert content == "I see"
    assert plain(calls) == [(0, "weather", {"days": 3}), (1, "weather", {"days": 4})]
    assert answer(text, "[TOOL_CALLS]none")[0] == "[TOOL_CALLS]none"


@pytest.mark.parametrize("mark", ["", "<|python_tag|>", "\n "])
def test_llama3(texts: dict[str, ModelText], mark: str) -> None:
    output = mark + '{ "name": "weather", "parameters": {"days": 3}}<|eot_id|>'
    content, calls, finish = answer(texts["llama3"], output)
    assert (content.strip(), plain(calls), finish) == ("", [(0, "weather", {"days": 3})], "tool_calls")


@pytest.mark.parametrize(
    "output", ['{"nam', '{"answer": 3}', ' {"name": "x" and more', "Plain {", '{"name": 3}', "\n", 80 * " " + "a"]
)
def test_llama3_json_that_is_no_call(texts: dict[str, ModelText], output: str) -> None:
    assert answer(texts["llama3"], output) == (output, [], "stop")


def test_each_convention_is_found_by_its_template_or_its_tokens() -> None:
    bare = Vocabulary(sentencepiece_tokenizer("gemma", []))
    assert detect(bare, "").name == "hermes"
    for convention in CONVENTIONS:
        marks = [mark.text for mark in convention.marks()]
        assert detect(bare, f"{{{{ '{' '.join([*marks, *convention.hints])}' }}}}") is convention
        assert named(convention.name) is convention
        if not convention.hints:
            assert detect(Vocabulary(sentencepiece_tokenizer("gemma", marks)), "") is convention
    both = Vocabulary(sentencepiece_tokenizer("gemma", ["<|python_tag|>"]))
    assert detect(both, "<tool_call>…</tool_call>").name == "hermes"  # a Hermes fine-tune of Llama 3
