"""Prompts are token for token those of transformers, in four families."""

import os
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.errors import PromptError
from worker.text.model_text import ModelText

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells <the> weather & more, even in Köln",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ASK = [{"role": "user", "content": "  What is the capital of France? 🙂\n"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
CALL = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "a1b2c3d4e",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "cold"},
]
THOUGHT = [*ASK, {"role": "assistant", "content": "Paris.", "reasoning_content": "Easy."}, ASK[0]]

CASES = {
    "ask": (ASK, [], {}),
    "talk": (TALK, [], {}),
    "thought": (THOUGHT, [], {}),
    "tools": (ASK, TOOLS, {}),
    "call": (CALL, TOOLS, {}),
    "variable": (ASK, [], {"enable_thinking": False}),
}


@pytest.fixture(scope="session")
def references(model_dirs: dict[str, Path]) -> dict[str, Any]:
    """transformers' own tokenisers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    return {style: AutoTokenizer.from_pretrained(path) for style, path in model_dirs.items()}


@pytest.mark.parametrize(
    ("style", "case"),
    [
        (style, case)
        for style in ("qwen3", "llama3", "mistral", "gemma")
        for case in CASES
        if style != "gemma" or case not in ("call", "tools")  # the family's template knows neither
    ],
)
def test_equals_transformers(style: str, case: str, texts: dict[str, ModelText], references: dict[str, Any]) -> None:
    messages, tools, variables = CASES[case]
    expected = references[style].apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=True, return_dict=False, **variables
    )
    prompt = Prompt(messages=messages, tools=tools, template=variables)
    assert texts[style].encode(prompt) == expected
    assert texts[style].render(prompt) == references[style].apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=True, tokenize=False, **variables
    )


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma"])
def test_text_prompts_equal_transformers(style: str, texts: dict[str, ModelText], references: dict[str, Any]) -> None:
    text = "The river runs. 🙂 你好"
    assert texts[style].encode(Prompt(text=text)) == references[style](text)["input_ids"]


def test_bos_is_not_doubled(texts: dict[str, ModelText]) -> None:
    ids = texts["mistral"].encode(Prompt(messages=ASK))
    assert ids.count(1) == 1
    assert texts["mistral"].encode(Prompt(text="one"))[0] == 1


def test_refusals_of_a_template_reach_the_client(texts: dict[str, ModelText]) -> None:
    with pytest.raises(PromptError, match="must alternate") as caught:
        texts["gemma"].encode(Prompt(messages=[*ASK, *ASK]))
    assert caught.value.param == "messages"


def test_other_template_errors_reach_the_client(tmp_path: Path) -> None:
    template = "{{ messages[0]['content'] + messages[0]['weight'] }}"
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    with pytest.raises(PromptError, match="could not render") as caught:
        text.encode(Prompt(messages=ASK))
    assert caught.value.param == "messages"


def test_a_template_cannot_leave_the_sandbox(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__ }}"
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    with pytest.raises(PromptError, match="unsafe"):
        text.encode(Prompt(messages=ASK))


@pytest.mark.parametrize("template", [None, "{% if %}"])
def test_without_a_usable_template_text_still_works(tmp_path: Path, template: str | None) -> None:
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    with pytest.raises(PromptError, match="chat template"):
        text.encode(Prompt(messages=ASK))
    assert text.encode(Prompt(text="one two"))


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_cannot_replace_the_conversation(texts: dict[str, ModelText], name: str) -> None:
    with pytest.raises(PromptError, match=name) as caught:
        texts["qwen3"].encode(Prompt(messages=ASK, template={name: []}))
    assert caught.value.param == "template"


def test_a_template_for_tools(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools {{ tools|length }}"}]
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), chat_template=templates))
    assert text.render(Prompt(messages=ASK)) == "plain"
    assert text.render(Prompt(messages=ASK, tools=TOOLS)) == "tools 1"


def test_what_the_dialect_offers(tmp_path: Path) -> None:
    template = (
        "{% generation %}{{ {'a': '<é>'} | tojson }}{% endgeneration %}"
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}"
        "{{ dict(a=1) | tojson(indent=1) }}{{ strftime_now('%Y') | length }}"
        "{% if documents is none %}.{% endif %}{{ eos_token }}{{ pad_token is defined }}"
    )
    eos = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False, "__type": "AddedToken"}
    path = write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template, eos_token=eos, pad_token=None)
    assert ModelText.load(path).render(Prompt(messages=ASK)) == '{"a": "<é>"}1{\n "a": 1\n}4.</s>False'
