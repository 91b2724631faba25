"""Reasoning goes its own way: opened by the model, opened by the template, cut off, spelt in plain text."""

from pathlib import Path

import pytest

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.model_text import ModelText
from worker.text.stream import TextStream

ASK = Prompt(messages=[{"role": "user", "content": "one"}])


def answer(
    text: ModelText, output: str, *, prompt: Prompt = ASK, finish: str = "stop", stop: list[str] | None = None
) -> tuple[str, str, TextStream]:
    """Content, reasoning and the stream, after `output` came token by token."""
    prompt_ids = text.encode(prompt)
    stream = text.stream(prompt, stop=stop or [], prompt_ids=prompt_ids)
    bos = text.encode(Prompt(text="a"))[0] if text.render(prompt).startswith("<s>") else None
    ids = [id for id in text.encode(Prompt(text=output)) if id != bos]
    pieces = [*(stream.feed([id]) for id in ids), stream.finish(finish)]
    return "".join(piece.text for piece in pieces), "".join(piece.reasoning for piece in pieces), stream


@pytest.mark.parametrize(
    ("output", "content", "reasoning"),
    [
        ("<think>\nA 🙂\n\nB\n</think>\n\nPlain.\n", "Plain.\n", "A 🙂\n\nB"),
        ("<think>\n\n</think>\n\nPlain.", "Plain.", ""),
        ("\n<think>why</think>because", "because", "why"),
        ("No block.\n\nAt all.\n\n", "No block.\n\nAt all.\n\n", ""),
        ("\n\n", "\n\n", ""),
        ("<think>never closed\n", "", "never closed"),
        ("<think>a</think>b\n<think>c</think>\nd", "bd", "a\n\nc"),
        ("stray </think>mark", "stray mark", ""),
        ("<think>a <think>b</think>c", "c", "a b"),
    ],
)
def test_blocks(texts: dict[str, ModelText], output: str, content: str, reasoning: str) -> None:
    assert answer(texts["qwen3"], output)[:2] == (content, reasoning)


def test_tokens_are_counted(texts: dict[str, ModelText]) -> None:
    inside = texts["qwen3"].encode(Prompt(text="<think>\nwhy not\n</think>"))
    stream = answer(texts["qwen3"], "<think>\nwhy not\n</think>\n\nPlain.<|im_end|>")[2]
    assert stream.reasoning_tokens == len(inside)
    assert answer(texts["qwen3"], "Plain.")[2].reasoning_tokens == 0


def opening_template(tail: str) -> str:
    return "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}<|im_start|>assistant\n" + tail


@pytest.mark.parametrize(
    ("tail", "content", "reasoning"),
    [
        ("<think>\n", "b", "a"),
        ("<think>", "b", "a"),
        ("<think>\n\n</think>\n\n", "a\nb", ""),  # thinking switched off; the mark is a stray one
    ],
)
def test_a_template_may_open_the_block(tmp_path: Path, tail: str, content: str, reasoning: str) -> None:
    from tests.support.tiny import write_tokenizer

    write_tokenizer(tmp_path)
    text = ModelText.load(write_model(tmp_path, template=opening_template(tail)))
    assert answer(text, "a</think>\nb" if reasoning else "a\nb")[:2] == (content, reasoning)
    if reasoning:  # cut off while thinking
        assert answer(text, "a, b", finish="length")[:2] == ("", "a, b")
        assert answer(text, "<think>\na</think>b")[:2] == ("b", "a")  # the model repeats the mark


def test_a_mark_in_the_question_opens_nothing(texts: dict[str, ModelText]) -> None:
    prompt = Prompt(messages=[{"role": "user", "content": "What does <think>"}])
    assert answer(texts["qwen3"], "It opens.", prompt=prompt)[:2] == ("It opens.", "")


def test_special_marks_are_seen(texts: dict[str, ModelText]) -> None:
    """These marks are special tokens, which decoding leaves out; and after them no space is left over."""
    assert answer(texts["mistral"], "[THINK]why[/THINK]because it is")[:2] == ("because it is", "why")


def test_marks_in_plain_text(tmp_path: Path) -> None:
    template = opening_template("{# keeps what follows </think>, not <think> #}")
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    assert len(text.encode(Prompt(text="<think>"))) > 2
    assert answer(text, "<think>\nwhy < not\n</think>\n\nbecause </thin air")[:2] == ("because </thin air", "why < not")
    assert answer(text, "a < b <thi")[:2] == ("a < b <thi", "")


def test_stop_strings_do_not_see_reasoning(texts: dict[str, ModelText]) -> None:
    content, reasoning, stream = answer(texts["qwen3"], "<think>\na END b\n</think>\n\nc END d", stop=["END", "\n\n"])
    assert (content, reasoning) == ("c ", "a END b")
    assert stream.finish("stop").text == ""


def test_prompts_of_text_are_continued_as_they_are(texts: dict[str, ModelText]) -> None:
    prompt = Prompt(text="x")
    assert answer(texts["qwen3"], "<think>\na\n</think>\n\nb", prompt=prompt)[:2] == ("<think>\na\n</think>\n\nb", "")
