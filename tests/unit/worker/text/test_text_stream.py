"""The outcome depends on the ids alone, and what is delivered is what the tokeniser decodes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.messages import Prompt
from tests.support.calls import join
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.model_text import ModelText

TOOLS = [{"type": "function", "function": {"name": "weather"}}]
CHAT = Prompt(messages=[{"role": "user", "content": "one"}], tools=TOOLS)
PLAIN = Prompt(messages=[{"role": "user", "content": "one"}])

# What models may put in a row; each style knows some of it as tokens.
WORDS = st.sampled_from([
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"),
    *('{"name": "weather", "arguments": {"a": "🙂"}}', "<function=weather></function>", "weather", "\n", "\n\n", " "),
    *("<|im_end|>", "<|python_tag|>", "</s>", "<|channel|>", "analysis", "final", "to=functions.weather"),
    *("<|message|>", "<|end|>", "<|start|>", "{}", "🙂", "你好", "END", "E", "N", "The river", "<th", "ink>"),
])  # fmt: skip


def outcome(text: ModelText, prompt: Prompt, feeds: list[list[int]], stop: list[str]) -> tuple[Any, ...]:
    stream = text.stream(prompt, stop=stop, prompt_ids=text.encode(prompt))
    pieces = []
    consumed = 0
    for ids in feeds:
        piece = stream.feed(ids)
        pieces.append(piece)
        consumed += piece.consumed
    pieces.append(stream.finish("stop"))
    return (
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        join(call for piece in pieces for call in piece.tool_calls),
        [piece.stopped for piece in pieces if piece.stopped is not None],
        consumed,
        stream.reasoning_tokens,
        pieces[-1].finish,
    )


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma", "harmony"])
@pytest.mark.parametrize("prompt", [CHAT, PLAIN, Prompt(text="one")], ids=["tools", "chat", "text"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_of_the_ids_gives_the_same(
    style: str, prompt: Prompt, texts: dict[str, ModelText], data: st.DataObject
) -> None:
    text = texts[style]
    if data.draw(st.booleans()):
        ids = text.encode(Prompt(text="a" + "".join(data.draw(st.lists(WORDS, max_size=12)))))
    else:
        ids = data.draw(st.lists(st.integers(0, text.vocab_size - 1), max_size=30))
    stop = data.draw(st.sampled_from([[], ["END"], ["\n\n", "END"]]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    feeds = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    expected = outcome(text, prompt, [[id] for id in ids], stop)
    assert outcome(text, prompt, feeds, stop) == expected
    assert outcome(text, prompt, [ids], stop) == expected


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma"])
@settings(max_examples=60, deadline=None)
@given(content=st.text(max_size=40))
def test_content_is_what_the_tokeniser_decodes(style: str, texts: dict[str, ModelText], content: str) -> None:
    """Without marks and stops, the whole answer; with tools offered as well."""
    text = texts[style]
    ids = text._vocabulary.encode(content, add_special_tokens=False)
    decoded = text._vocabulary.decode(ids)
    for prompt in (CHAT, PLAIN):
        assert outcome(text, prompt, [[id] for id in ids], [])[0] == decoded


def test_a_resumed_stream_stands_where_the_lost_one_stood(texts: dict[str, ModelText]) -> None:
    text = texts["qwen3"]
    output = '<think>\nwhy 🙂\n</think>\n\nSo:\n<tool_call>{"name": "weather"}</tool_call>'
    ids = text.encode(Prompt(text=output))
    whole = outcome(text, CHAT, [ids], [])
    for cut in range(len(ids)):
        first = text.stream(CHAT, stop=[], prompt_ids=text.encode(CHAT))
        delivered = first.feed(ids[:cut])
        second = text.stream(CHAT, stop=[], prompt_ids=text.encode(CHAT))
        assert second.feed(ids[:cut]) == delivered
        rest, end = second.feed(ids[cut:]), second.finish("stop")
        assert delivered.text + rest.text + end.text == whole[0]
        assert delivered.reasoning + rest.reasoning + end.reasoning == whole[1]
        assert join([*delivered.tool_calls, *rest.tool_calls, *end.tool_calls]) == whole[2]


@pytest.mark.parametrize("prompt", [PLAIN, Prompt(text="x")], ids=["chat", "text"])
def test_only_ids_up_to_the_stop_string_count(texts: dict[str, ModelText], prompt: Prompt) -> None:
    text = texts["qwen3"]
    before, after = text.encode(Prompt(text="The river EN")), text.encode(Prompt(text="D and the sea"))
    stream = text.stream(prompt, stop=["END"], prompt_ids=text.encode(prompt))
    piece = stream.feed([*before, *after])
    assert (piece.text, piece.stopped, piece.consumed) == ("The river ", "END", len(before) + 1)
    late = stream.feed(after)
    assert (late.text, late.consumed) == ("", 0)
    assert stream.finish("stop").text == ""


@pytest.mark.parametrize(
    "output", ["The sea<think>ENDx", "<think>why</think>The sea END<think>more</think>x", "The sea <tool_call>END"]
)
def test_nothing_comes_after_a_stop_string_in_the_same_token(tmp_path: Path, output: str) -> None:
    """Marks in plain text, and one token that holds a stop string together with what follows it."""
    tokenizer = sentencepiece_tokenizer("gemma", [])
    glued = "ea" + output.partition("The sea")[2]
    tokenizer.add_tokens([glued])
    template = "{{ messages[0].content }}{# <think> </think> #}"
    text = ModelText.load(write_model(tmp_path, tokenizer, template=template))
    ids = text._vocabulary.encode(output, add_special_tokens=False)
    assert tokenizer.token_to_id(glued) in ids
    content, reasoning, calls, stopped, consumed, _, finish = outcome(text, CHAT, [ids], ["sea", "END"])
    assert (content, calls, stopped, finish) == ("The ", [], ["sea"], "stop")
    assert reasoning == ("why" if "why" in output else "")
    assert consumed == ids.index(tokenizer.token_to_id(glued)) + 1


def test_a_torn_character_in_front_of_a_mark(texts: dict[str, ModelText]) -> None:
    text = texts["mistral"]
    torn = text._vocabulary.encode("🙂", add_special_tokens=False)[1:3]
    mark = text._vocabulary.encode("[THINK]", add_special_tokens=False)[-1:]
    assert outcome(text, PLAIN, [torn, mark], [])[0] == "�"


def test_a_torn_character_is_settled_at_the_end(texts: dict[str, ModelText]) -> None:
    text = texts["gemma"]
    ids = text._vocabulary.encode("a🙂", add_special_tokens=False)
    stream = text.stream(PLAIN, stop=[], prompt_ids=text.encode(PLAIN))
    assert stream.feed(ids[:-1]).text == "a"
    assert stream.finish("length").text == "�"


@pytest.mark.parametrize("prompt", [CHAT, PLAIN, Prompt(text="one")], ids=["tools", "chat", "text"])
def test_end_tokens_make_no_text_even_where_they_are_no_special_ones(tmp_path: Path, prompt: Prompt) -> None:
    tokenizer = sentencepiece_tokenizer("gemma", [])
    the, sea = tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁a")
    path = write_model(tmp_path, tokenizer, template="{{ messages[0].content }}", generation={"eos_token_id": [the]})
    text = ModelText.load(path)
    assert outcome(text, prompt, [[sea, the], [sea]], [])[0] == " a a"


def test_tokens_for_people(texts: dict[str, ModelText]) -> None:
    stream = texts["qwen3"].stream(PLAIN, stop=[], prompt_ids=[1])
    assert stream.token_text(texts["qwen3"].eos_ids[-1]) == texts["qwen3"].token_text(texts["qwen3"].eos_ids[-1])
    assert json.dumps(stream.token_text(texts["qwen3"].eos_ids[-1])).startswith('"<|')
