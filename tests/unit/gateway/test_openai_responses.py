"""Bodies of /v1/responses to neutral requests, and refusals that name the field."""

from typing import Any

import pytest

from gateway.dialects import opaque
from gateway.dialects.openai_responses import PARAMETERS, parse, read
from gateway.dialects.openai_responses_input import Past
from gateway.dialects.openai_responses_tools import Named
from gateway.errors import ApiError, NotSupported
from gateway.request import InferenceRequest
from shared.messages import Constraint

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "d", "parameters": SCHEMA, "strict": False}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: WORD"},
}
SPACE = {"type": "namespace", "name": "mail", "description": "d", "tools": [{**WEATHER, "name": "send"}]}
SEARCH = {"type": "web_search", "external_web_access": True}


def request(**fields: Any) -> InferenceRequest:
    return parse({"model": "m", "input": "hi", **fields}, {})


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    found = request(input=list(items), **fields).prompt.messages
    assert found is not None
    return found


def reasoning(**fields: Any) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [], **fields}


def test_the_smallest_body() -> None:
    got = request()
    assert got.prompt.messages == [{"role": "user", "content": "hi"}]
    assert (got.sampling.n, got.sampling.max_tokens, got.sampling.logprobs, got.stream) == (1, None, None, False)
    assert got.notes.is_stored
    assert not got.notes.is_background


def test_instructions_are_the_first_system_message_and_developers_are_operators() -> None:
    assert messages({"role": "developer", "content": "D"}, {"role": "user", "content": "U"}, instructions="I") == [
        {"role": "system", "content": "I"},
        {"role": "system", "content": "D"},
        {"role": "user", "content": "U"},
    ]


def test_pieces_of_one_answer_become_one_message() -> None:
    got = messages(
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        reasoning(content=[{"type": "reasoning_text", "text": "hm"}]),
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "***"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "message", "role": "assistant", "content": "It rains."},
        {"type": "message", "role": "assistant", "content": "Much."},
        {"role": "user", "content": "and?"},
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}},
        {"id": "c2", "type": "function", "function": {"name": "apply_patch", "arguments": {"input": "***"}}},
    ]
    assert got[1:] == [
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": "done", "tool_call_id": "c2"},
        {"role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": "Much."},
        {"role": "user", "content": "and?"},
    ]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (reasoning(content=[{"type": "reasoning_text", "text": "all"}], encrypted_content=opaque.wrap("no")), "all"),
        (reasoning(encrypted_content=opaque.wrap("inside")), "inside"),
        (reasoning(encrypted_content="gAAAAAB", summary=[{"type": "summary_text", "text": "short"}]), "short"),
        (reasoning(encrypted_content="gAAAAAB"), None),
    ],
)
def test_reasoning_comes_back_as_well_as_it_can(item: dict[str, Any], text: str | None) -> None:
    got = messages({"role": "user", "content": "a"}, item, {"role": "assistant", "content": "b"})[1]
    assert got.get("reasoning_content") == text


def test_the_past_goes_before_the_input_and_references_are_resolved() -> None:
    item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "old"}]}
    past = Past([{"role": "user", "content": "first"}], {"msg_1": item})
    body = {"model": "m", "instructions": "I", "input": [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}]}
    got = read(body, past)
    assert got.prompt.messages is not None
    assert [one["content"] for one in got.prompt.messages] == ["I", "first", "old", "old"]
    assert got.notes.items == [item, item]
    with pytest.raises(ApiError, match="'msg_2' not found") as caught:
        read({"model": "m", "input": [{"type": "item_reference", "id": "msg_2"}]}, past)
    assert (caught.value.status, caught.value.param) == (404, "input[0]")


def test_tools_of_all_kinds() -> None:
    got = request(tools=[WEATHER, PATCH, SPACE, SEARCH])
    functions = [tool["function"] for tool in got.prompt.tools]
    assert [one["name"] for one in functions] == ["weather", "apply_patch", "mail__send"]
    assert functions[0] == {"name": "weather", "description": "d", "parameters": SCHEMA}
    assert functions[1]["parameters"]["required"] == ["input"]
    assert "start: WORD" in functions[1]["parameters"]["properties"]["input"]["description"]
    assert got.notes.form.named["mail__send"] == Named("function", "send", "mail")
    assert got.ignored == ("tools[3]",)
    history = {"type": "function_call", "call_id": "c", "name": "send", "namespace": "mail", "arguments": "{}"}
    assert messages({"role": "user", "content": "x"}, history)[1]["tool_calls"][0]["function"]["name"] == "mail__send"


@pytest.mark.parametrize(
    ("choice", "expected", "listed"),
    [
        (None, "auto", 3),
        ("none", "none", 3),
        ("required", "required", 3),
        ({"type": "function", "name": "weather"}, "=weather", 3),
        ({"type": "custom", "name": "apply_patch"}, "=apply_patch", 3),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            "required",
            1,
        ),
    ],
)
def test_tool_choice(choice: Any, expected: str, listed: int) -> None:
    prompt = request(tools=[WEATHER, PATCH, SPACE], tool_choice=choice, parallel_tool_calls=False).prompt
    assert (prompt.tool_choice, len(prompt.tools), prompt.parallel_tool_calls) == (expected, listed, False)


def test_reasoning_text_and_delivery() -> None:
    got = request(
        reasoning={"effort": "none", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}, "verbosity": "low"},
        include=["reasoning.encrypted_content", "file_search_call.results"],
        top_logprobs=2,
        max_output_tokens=9,
        metadata={"a": "b"},
        service_tier="flex",
    )
    assert got.prompt.template == {"enable_thinking": False, "reasoning_effort": "none"}
    assert got.constraint == Constraint(kind="json_schema", value=SCHEMA)
    form = got.notes.form
    assert (form.is_summary, form.is_encrypted, form.has_logprobs) == (True, True, True)
    assert (got.sampling.logprobs, got.sampling.max_tokens, got.job_class) == (2, 9, "batch")
    assert got.notes.echo["metadata"] == {"a": "b"}
    assert request(text={"format": {"type": "json_object"}}).constraint == Constraint(kind="json_object")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"role": "robot", "content": ""}]}, "input[0].role"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content[0].type"),
    (
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
        "input[0].output[0].image_url",
    ),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"tools": [{"name": "f"}]}, "tools[0].type"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", "tools": [SEARCH]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"truncation": "some"}, "truncation"),
    ({"background": True, "store": False}, "background"),
    ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        request(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_every_known_parameter_is_in_one_list_and_strangers_are_told() -> None:
    lists = [set(PARAMETERS.honoured), set(PARAMETERS.ignored), set(PARAMETERS.refused)]
    assert sum(map(len, lists)) == len(set.union(*lists))
    assert request(wibble=1, prompt_cache_key="k", client_metadata={}).ignored == (
        "wibble",
        "prompt_cache_key",
        "client_metadata",
    )
    with pytest.raises(NotSupported):
        request(n=2)


def custom(form: Any) -> dict[str, Any]:
    return {"type": "custom", "name": "patch", "format": form}


@pytest.mark.parametrize(("syntax", "kind"), [("lark", "grammar"), ("regex", "regex")])
def test_the_form_of_a_custom_tool_goes_along_and_is_shown(syntax: str, kind: str) -> None:
    prompt = request(tools=[custom({"type": "grammar", "syntax": syntax, "definition": "start: X"})]).prompt
    assert {name: (one.kind, one.value) for name, one in prompt.freeform.items()} == {"patch": (kind, "start: X")}
    description = prompt.tools[0]["function"]["parameters"]["properties"]["input"]["description"]
    assert "start: X" in description
    assert request(tools=[custom(None), {**custom({"type": "text"}), "name": "say"}]).prompt.freeform == {}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar", "syntax": "bnf", "definition": "a"}, "tools[0].format.syntax"),
        ({"type": "grammar", "definition": "a"}, "tools[0].format.syntax"),
        ({"type": "grammar", "syntax": "lark"}, "tools[0].format.definition"),
        ({"type": "grammar", "syntax": "lark", "definition": "a" * (1 << 18) + "a"}, "tools[0].format.definition"),
        ({"type": "json"}, "tools[0].format.type"),
    ],
)
def test_a_form_that_is_none_is_named(form: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        request(tools=[custom(form)])
    assert caught.value.param == param


def test_truncation_and_the_bound_of_reasoning() -> None:
    got = request(truncation="auto", reasoning={"max_tokens": 9})
    assert (got.prompt.shorten, got.sampling.thinking_budget) == (True, 9)
    assert got.notes.echo["truncation"] == "auto"
    assert not request(truncation="disabled").prompt.shorten


def test_what_an_object_has_besides_is_told() -> None:
    got = request(reasoning={"effort": "low", "context": "auto"}, text={"verbosity": "low"})
    assert set(got.ignored) == {"reasoning.context", "text.verbosity"}


@pytest.mark.parametrize("name", ["input", "tools", "tool_choice", "text"])
def test_what_the_answer_repeats_is_not_too_deep_to_be_written(name: str) -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"x": deep}
    values: dict[str, Any] = {
        "input": [{"role": "user", "content": "a", "x": deep}],
        "tools": [WEATHER | {"x": deep}],
        "tool_choice": {"type": "function", "name": "weather", "x": deep},
        "text": {"format": {"type": "text", "x": deep}},
    }
    with pytest.raises(ApiError) as caught:
        request(**{"tools": [WEATHER], name: values[name]})
    assert (caught.value.status, caught.value.param) == (400, name)
