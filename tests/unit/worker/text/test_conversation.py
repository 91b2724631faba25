"""One conversation has one prompt, however a client writes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.conversation import Shape
from worker.text.errors import PromptError
from worker.text.model_text import ModelText
from worker.text.template import compile_template
from worker.text.traits import probe

ARGUMENTS = {"city": "Köln", "days": 3}
FAMILIES = ["qwen3", "llama3", "mistral"]


def call_turn(content: Any, arguments: Any, *, with_content: bool = True) -> list[dict[str, Any]]:
    function = {"name": "get_weather", "arguments": arguments}
    assistant = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": function}],
    }
    if not with_content:
        del assistant["content"]
    return [
        {"role": "user", "content": "Weather?"},
        assistant,
        {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "cold"},
    ]


@pytest.mark.parametrize("style", [*FAMILIES, "gemma"])
def test_text_and_one_part_are_the_same(style: str, texts: dict[str, ModelText]) -> None:
    plain = Prompt(messages=[{"role": "user", "content": "Hello there"}])
    for kind in ("text", "input_text"):
        parts = Prompt(messages=[{"role": "user", "content": [{"type": kind, "text": "Hello there"}], "name": None}])
        assert texts[style].encode(parts) == texts[style].encode(plain)


@pytest.mark.parametrize("style", FAMILIES)
def test_calls_in_the_history_are_the_same(style: str, texts: dict[str, ModelText]) -> None:
    text = texts[style]
    expected = text.render(Prompt(messages=call_turn(None, ARGUMENTS)))
    assert '"Köln"' in expected and "None" not in expected
    for content in (None, ""):
        for arguments in (ARGUMENTS, json.dumps(ARGUMENTS), json.dumps(ARGUMENTS, indent=2, ensure_ascii=False)):
            assert text.render(Prompt(messages=call_turn(content, arguments))) == expected
    assert text.render(Prompt(messages=call_turn(None, ARGUMENTS, with_content=False))) == expected


def test_broken_arguments_are_passed_on(texts: dict[str, ModelText]) -> None:
    assert '{"city": ' in texts["qwen3"].render(Prompt(messages=call_turn(None, '{"city": ')))


def test_empty_arguments_are_an_object(texts: dict[str, ModelText]) -> None:
    rendered = [texts["qwen3"].render(Prompt(messages=call_turn(None, value))) for value in ("", None, {}, "{}")]
    assert len(set(rendered)) == 1 and '"arguments": {}' in rendered[0]


def test_ids_of_other_services_fit_mistral(texts: dict[str, ModelText]) -> None:
    messages = call_turn(None, ARGUMENTS)
    messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "call_0123456789abcdef"
    rendered = texts["mistral"].render(Prompt(messages=messages))
    id = rendered.partition('"id": "')[2][:9]
    assert id.isalnum() and f'"call_id": "{id}"' in rendered


def test_several_parts_are_joined_as_the_template_does(texts: dict[str, ModelText]) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    prompt = Prompt(messages=[{"role": "user", "content": parts}])
    assert "onetwo" in texts["gemma"].render(prompt)  # its template iterates over parts
    assert "one\ntwo" in texts["qwen3"].render(prompt)


def test_parts_that_are_plain_strings(texts: dict[str, ModelText]) -> None:
    prompts = [Prompt(messages=[{"role": "user", "content": content}]) for content in (["one"], "one")]
    assert texts["qwen3"].encode(prompts[0]) == texts["qwen3"].encode(prompts[1])


def test_no_tool_calls_are_none_at_all(texts: dict[str, ModelText]) -> None:
    ask, said = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
    rendered = {
        texts["mistral"].render(Prompt(messages=[ask, said | extra, ask])) for extra in ({}, {"tool_calls": []})
    }
    assert len(rendered) == 1


def test_a_template_for_parts_alone(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% for p in m.content %}{{ p.type }}:{{ p.text }};{% endfor %}{% endfor %}"
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=template))
    assert text.render(Prompt(messages=[{"role": "user", "content": "one"}])) == "text:one;"
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert text.render(Prompt(messages=[{"role": "user", "content": parts}])) == "text:onetwo;"


def test_the_developer_is_a_system_where_the_role_is_unknown(texts: dict[str, ModelText]) -> None:
    ask = {"role": "user", "content": "one"}
    system, developer = ([{"role": role, "content": "Be brief."}, ask] for role in ("system", "developer"))
    assert texts["qwen3"].encode(Prompt(messages=developer)) == texts["qwen3"].encode(Prompt(messages=system))


def test_reasoning_under_any_of_its_names(texts: dict[str, ModelText]) -> None:
    rendered = set()
    for name in ("reasoning_content", "reasoning", "thinking"):
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two", name: "because"}]
        rendered.add(texts["qwen3"].render(Prompt(messages=messages)))
    assert len(rendered) == 1 and "because" in rendered.pop()


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["text"],
        [{"content": "no role"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
    ],
)
def test_what_no_text_model_takes(texts: dict[str, ModelText], messages: list[Any]) -> None:
    with pytest.raises(PromptError) as caught:
        texts["qwen3"].encode(Prompt(messages=messages))
    assert caught.value.param == "messages"


def test_tools_that_are_no_functions(texts: dict[str, ModelText]) -> None:
    prompt = Prompt(messages=[{"role": "user", "content": "one"}], tools=[{"type": "web_search"}])
    with pytest.raises(PromptError) as caught:
        texts["qwen3"].encode(prompt)
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        # Only joins strings, as DeepSeek's does.
        ("{{ c.function.name + c.function.arguments }}", Shape(arguments="text")),
        # Prints what it is given: an object would come out as Python.
        ("{{ c.function.name }}{{ c.function.arguments }}", Shape(arguments="text")),
        # Needs the content, and None for "there is none".
        (
            "{% if m.content is not none %}{{ m.content + 'x' }}{% endif %}{{ c.function.name }}"
            "{{ c.function.arguments.city }}",
            Shape(no_content="none"),
        ),
        ("{{ m['content'] + c.function.name }}{{ c.function.arguments.city }}", Shape(no_content="empty")),
    ],
)
def test_the_shape_is_found_by_trial(calls: str, expected: Shape) -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}" + calls + "{% else %}{{ m.content }}{% endfor %}"
        "{% endfor %}"
    )
    render = compile_template(source)
    assert probe(lambda messages: render(messages=messages), source) == expected
