"""System messages reach every model, whatever its template thinks of them."""

from pathlib import Path
from typing import Any

import pytest

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.model_text import ModelText
from worker.text.system import place_system


def talk(*turns: str) -> list[dict[str, Any]]:
    """`s:text` is a system message; u user, a assistant."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


@pytest.mark.parametrize(
    ("turns", "first", "nowhere"),
    [
        (["s:A", "u:B"], ["s:A", "u:B"], ["u:A\n\nB"]),
        (["s:A", "s:B", "u:C"], ["s:A\n\nB", "u:C"], ["u:A\n\nB\n\nC"]),
        (["u:A", "s:B"], ["u:A\n\nB"], ["u:A\n\nB"]),
        (["s:A", "u:B", "s:C", "a:D"], ["s:A", "u:B\n\nC", "a:D"], ["u:A\n\nB\n\nC", "a:D"]),
        (["u:A", "a:B", "s:C", "u:D"], ["u:A", "a:B", "u:C\n\nD"], ["u:A", "a:B", "u:C\n\nD"]),
        (["u:A", "a:B", "s:C"], ["u:A", "a:B", "u:C"], ["u:A", "a:B", "u:C"]),
        (["s:A"], ["s:A"], ["u:A"]),
        (["s:", "u:B"], ["s:", "u:B"], ["u:B"]),
    ],
)
def test_places(turns: list[str], first: list[str], nowhere: list[str]) -> None:
    assert place_system(talk(*turns), "first") == talk(*first)
    assert place_system(talk(*turns), "nowhere") == talk(*nowhere)
    assert place_system(talk(*turns), "anywhere") == talk(*turns)


def test_nothing_of_the_client_is_changed() -> None:
    messages = talk("u:A", "s:B")
    place_system(messages, "first")
    assert messages == talk("u:A", "s:B")


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma"])
def test_a_late_system_message_reaches_every_family(style: str, texts: dict[str, ModelText]) -> None:
    rendered = texts[style].render(Prompt(messages=talk("s:Alpha", "u:Beta", "s:Gamma", "a:Delta", "u:Epsilon")))
    places = [rendered.index(word) for word in ("Alpha", "Beta", "Gamma", "Delta", "Epsilon")]
    if style != "mistral":  # its template puts the first one in front of the last question
        assert places == sorted(places)


@pytest.mark.parametrize(
    "refusal", ["{{ raise_exception('System role not supported') }}", ""], ids=["refused", "dropped"]
)
def test_a_template_without_the_role(tmp_path: Path, refusal: str) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}" + refusal + "{% else %}[{{ m.role }}]{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    assert text.render(Prompt(messages=talk("s:Be brief.", "u:one"))) == "[user]Be brief.\n\none"
