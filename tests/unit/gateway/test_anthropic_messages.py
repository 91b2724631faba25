"""Bodies of /v1/messages to neutral requests, and refusals that name the field."""

from typing import Any

import pytest

from gateway.dialects import opaque
from gateway.dialects.anthropic_messages import PARAMETERS, parse, parse_count
from gateway.errors import ApiError, NotSupported
from gateway.request import InferenceRequest
from shared.messages import Constraint

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "d", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def a_body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}], **fields}


def read(**fields: Any) -> InferenceRequest:
    return parse(a_body(**fields), {})


def said(*content: Any, system: Any = None) -> list[dict[str, Any]]:
    """The messages of a prompt whose turns alternate, the user's first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": one} for index, one in enumerate(content)]
    prompt = read(messages=messages, **({} if system is None else {"system": system})).prompt
    assert prompt.messages is not None
    return prompt.messages


def test_the_smallest_body() -> None:
    request = read()
    assert request.prompt.messages == [{"role": "user", "content": "hi"}]
    assert (request.model, request.sampling.max_tokens, request.stream, request.ignored) == ("m", 10, False, ())
    assert request.prompt.template == {}


def test_strings_and_blocks_are_one_prompt_with_and_without_cache_control() -> None:
    marked = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    assert said("hi", system="hi") == said(marked, system=marked)
    assert said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == said("a\nb")


def test_the_line_for_the_books_goes_and_the_system_prompt_stays() -> None:
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1;"},
        {"type": "text", "text": "S"},
    ]
    request = read(system=blocks)
    assert request.prompt.messages is not None
    assert request.prompt.messages[0] == {"role": "system", "content": "S"}
    assert "system[0]" in request.ignored
    assert said("hi", system="") == said("hi")


def test_a_system_message_stays_where_it_is() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": [{"type": "text", "text": "note"}]}]
    assert read(messages=messages).prompt.messages == [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "note"},
    ]


def test_a_tool_turn() -> None:
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}
    messages = said(
        "hi", [thinking, {"type": "text", "text": "I look."}, use], [result, {"type": "text", "text": "and?"}]
    )
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    assert messages[1:] == [
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "user", "content": "and?"},
    ]


@pytest.mark.parametrize(
    ("content", "is_error", "text"),
    [
        (None, None, ""),
        ("x", False, "x"),
        ("x", True, "Error: x"),
        (None, True, "Error"),
        ("Error: no such file", True, "Error: no such file"),
        ("<tool_use_error>x", True, "<tool_use_error>x"),
    ],
)
def test_a_result_says_whether_it_is_an_error(content: str | None, is_error: bool | None, text: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "c1", "content": content, "is_error": is_error}
    assert said([block]) == [{"role": "tool", "content": text, "tool_call_id": "c1"}]


def test_thinking_comes_back_also_when_it_was_omitted_and_foreign_blocks_say_nothing() -> None:
    omitted = {"type": "thinking", "thinking": "", "signature": opaque.wrap("hidden")}
    foreign = {"type": "thinking", "thinking": "", "signature": "EqQBCkYIBBgC"}
    redacted = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    answer = {"type": "text", "text": "yes"}
    assert said("a", [omitted, answer], "b")[1]["reasoning_content"] == "hidden"
    assert said("a", [foreign, redacted, answer], "b")[1] == {"role": "assistant", "content": "yes"}


def test_deferred_tools_are_shown_where_a_result_refers_to_them() -> None:
    later = {**WEATHER, "name": "later", "defer_loading": True}
    finder = {"name": "find", "input_schema": {"type": "object"}}
    before = read(tools=[WEATHER, later, finder])
    assert [tool["function"]["name"] for tool in before.prompt.tools] == ["weather", "find"]
    assert before.prompt.shown_tools == []
    found = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "tool_reference", "tool_name": "later"}]}
    after = read(tools=[WEATHER, later, finder], messages=[{"role": "user", "content": [found]}])
    assert after.prompt.tools == before.prompt.tools
    assert [tool["function"]["name"] for tool in after.prompt.shown_tools] == ["later"]
    assert after.prompt.messages is not None
    assert '"name":"later"' in after.prompt.messages[0]["content"]
    assert read(tools=[later]).prompt.tools[0]["function"]["name"] == "later"
    assert read(tools=[WEATHER, later], tool_choice={"type": "tool", "name": "later"}).prompt.tool_choice == "=later"


def test_tools_that_cannot_be_served_are_left_out_and_told() -> None:
    request = read(tools=[SEARCH, {**WEATHER, "type": "custom", "eager_input_streaming": True, "wibble": 1}])
    parameters = {"name": "weather", "description": "d", "parameters": SCHEMA}
    assert request.prompt.tools == [{"type": "function", "function": parameters}]
    assert request.ignored == ("tools[0]", "tools[1].wibble")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", True)),
        ({"type": "auto"}, ("auto", True)),
        ({"type": "none"}, ("none", True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
        ({"type": "tool", "name": "weather"}, ("=weather", True)),
    ],
)
def test_tool_choice(choice: Any, expected: tuple[str, bool]) -> None:
    prompt = read(tools=[WEATHER], tool_choice=choice).prompt
    assert (prompt.tool_choice, prompt.parallel_tool_calls) == expected


@pytest.mark.parametrize(
    ("fields", "template"),
    [
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"enable_thinking": True, "thinking_budget": 9}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            {"enable_thinking": True, "reasoning_effort": "high"},
        ),
    ],
)
def test_thinking_and_effort_reach_the_template(fields: dict[str, Any], template: dict[str, Any]) -> None:
    assert read(**fields).prompt.template == template


def test_sampling_stops_and_format() -> None:
    request = read(
        temperature=0, top_p=0.5, top_k=3, seed=-1, stop_sequences=["a", "b"],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )  # fmt: skip
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (0.0, 0.5, 3, ["a", "b"])
    assert sampling.seed == 2**63 - 1
    assert request.constraint == Constraint(kind="json_schema", value=SCHEMA)
    older = {"type": "json_schema", "schema": SCHEMA}
    assert read(output_format=older).constraint == request.constraint


def test_counting_needs_no_max_tokens() -> None:
    body = a_body(tools=[])
    del body["max_tokens"]
    assert parse_count(body, {}).prompt.messages == [{"role": "user", "content": "hi"}]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

CALL = {"type": "tool_use", "id": "c", "name": "f", "input": {}}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": [ANSWERED[0], {"role": "assistant", "content": ""}]}, "messages[1]"),
    (
        {"messages": [ANSWERED[0], {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}]}]},
        "messages[1]",
    ),
    ({"messages": [ANSWERED[0], {"role": "assistant", "content": [CALL]}]}, "messages[1]"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].source.data"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [IMAGE]}]}]},
        "messages[0].content[0].content[0].source.data",
    ),
    ({"system": 3}, "system"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [WEATHER]}, "tool_choice.name"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "often"}}, "thinking.type"),
    ({"output_config": {"effort": "some"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"temperature": 3}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith((param, param.rpartition(".")[0], "messages"))


def test_every_known_parameter_is_in_one_list_and_strangers_are_told() -> None:
    lists = [set(PARAMETERS.honoured), set(PARAMETERS.ignored), set(PARAMETERS.refused)]
    assert sum(map(len, lists)) == len(set.union(*lists))
    request = read(wibble=1, metadata={"user_id": "{}"}, context_management={"edits": []}, mcp_servers=[])
    assert request.ignored == ("wibble", "metadata", "context_management")
    with pytest.raises(NotSupported):
        read(n=2)


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert not read(messages=ANSWERED[:1]).prompt.continue_final
    prompt = read(messages=ANSWERED).prompt
    assert prompt.continue_final
    assert prompt.messages == ANSWERED


@pytest.mark.parametrize(
    ("thinking", "budget"),
    [
        (None, None),
        ({"type": "disabled"}, None),
        ({"type": "adaptive"}, None),
        ({"type": "enabled", "budget_tokens": 1024}, 1024),
    ],
)
def test_a_budget_of_thinking_is_a_bound(thinking: dict[str, Any] | None, budget: int | None) -> None:
    assert read(thinking=thinking).sampling.thinking_budget == budget


def test_what_an_object_has_besides_is_told() -> None:
    request = read(
        thinking={"type": "adaptive", "x": 1},
        output_config={"effort": "low", "y": None, "task_budget": {}},
        tool_choice={"type": "auto", "z": 1},
    )
    assert set(request.ignored) == {"thinking.x", "output_config.task_budget", "tool_choice.z"}
