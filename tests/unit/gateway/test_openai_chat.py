"""Chat bodies to requests: what each field means, and how each wrong one is refused."""

from typing import Any

import pytest

from gateway.dialects.openai_chat import PARAMETERS, parse
from gateway.errors import ApiError, InvalidRequest, NotSupported
from gateway.request import InferenceRequest
from shared.messages import Constraint, encode

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def chat(headers: dict[str, str] | None = None, **fields: Any) -> InferenceRequest:
    return parse({"model": "m", "messages": HI, **fields}, headers or {})


def messages(*given: Any) -> list[dict[str, Any]]:
    return chat(messages=list(given)).prompt.messages or []


def test_the_least_body() -> None:
    request = chat()
    assert request.model == "m"
    assert request.prompt.messages == HI
    assert (request.stream, request.include_usage, request.ignored) == (False, False, ())
    assert (request.sampling.n, request.sampling.max_tokens, request.sampling.temperature) == (1, None, None)


def test_a_seed_is_always_set_and_kept() -> None:
    assert chat().sampling.seed != chat().sampling.seed
    assert chat(seed=5).sampling.seed == 5
    assert chat(seed=-1).sampling.seed == 2**63 - 1


def test_every_sampling_parameter_arrives() -> None:
    sampling = chat(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.1, n=3, stop="a", max_tokens=5, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.1, logit_bias={"7": -100}, stop_token_ids=[3], ignore_eos=True,
        logprobs=True, top_logprobs=2,
    ).sampling  # fmt: skip
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.n) == (0.0, 0.5, 0, 0.1, 3)
    assert (sampling.stop, sampling.max_tokens, sampling.logit_bias) == (["a"], 5, {7: -100.0})
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1.0, -1.0, 1.1)
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.logprobs) == ([3], True, 2)


def test_logprobs_without_a_number_are_of_the_chosen_token() -> None:
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=False, top_logprobs=0).sampling.logprobs is None


def test_max_completion_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


def test_an_over_large_max_tokens_is_no_error() -> None:
    assert chat(max_tokens=10**30).sampling.max_tokens == 2**31 - 1
    assert chat(max_tokens=float(10**30)).sampling.max_tokens == 2**31 - 1  # as JSON readers give such numbers


def test_null_means_not_given() -> None:
    names = PARAMETERS.honoured.keys() - {"model", "messages"} | PARAMETERS.ignored.keys() | PARAMETERS.refused.keys()
    request = chat(**dict.fromkeys(names))
    assert request.sampling.temperature is None
    assert request.prompt.tools == []


def test_usage_comes_with_streams_only() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    request = chat(stream_options={"include_usage": True})
    assert (request.include_usage, request.ignored) == (False, ("stream_options",))


def test_thinking_may_be_asked_for_by_header() -> None:
    assert chat({"x-include-thinking": "True"}).include_thinking
    assert not chat({"x-include-thinking": "no"}).include_thinking


def test_reasoning_effort_becomes_template_variables() -> None:
    assert chat(reasoning_effort="none").prompt.template == {"enable_thinking": False, "reasoning_effort": "none"}
    assert chat(reasoning_effort="low").prompt.template == {"enable_thinking": True, "reasoning_effort": "low"}
    explicit = chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False, "x": [1]})
    assert explicit.prompt.template == {"enable_thinking": False, "reasoning_effort": "low", "x": [1]}


# --- messages ------------------------------------------------------------------------------------------------


def test_text_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    assert messages({"role": "user", "content": parts}) == [{"role": "user", "content": "a\nb"}]
    assert messages({"role": "user", "content": parts[:1]}) == messages({"role": "user", "content": "a"})


def test_a_developer_is_a_system() -> None:
    assert messages({"role": "developer", "content": "x"}, *HI)[0]["role"] == "system"


def test_a_system_message_may_come_anywhere() -> None:
    assert [one["role"] for one in messages(*HI, {"role": "system", "content": "x"})] == ["user", "system"]


def test_a_tool_turn() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    checked = messages(
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
    )
    assert checked[1]["content"] == ""
    assert checked[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert checked[2] == {"role": "tool", "content": "ok", "tool_call_id": "c1"}


def test_arguments_that_are_no_object_stay_text() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": "{broken"}}
    assert messages(*HI, {"role": "assistant", "tool_calls": [call]})[1]["tool_calls"][0]["function"]["arguments"] == (
        "{broken"
    )


def test_reasoning_of_earlier_answers_is_kept() -> None:
    assert messages({"role": "assistant", "content": "a", "reasoning_content": "b"})[0]["reasoning_content"] == "b"


def test_unknown_keys_of_a_message_are_named() -> None:
    assert chat(messages=[{"role": "user", "content": "x", "weight": 1}]).ignored == ("messages[0].weight",)


# --- tools ---------------------------------------------------------------------------------------------------


def test_tools_reach_the_prompt() -> None:
    assert chat(tools=[TOOL]).prompt.tools == [TOOL]
    assert chat(tools=[TOOL], tool_choice="auto").prompt.tools == [TOOL]


def test_tool_choice_none_leaves_them_in_the_prompt() -> None:
    prompt = chat(tools=[TOOL], tool_choice="none").prompt
    assert (prompt.tools, prompt.tool_choice) == ([TOOL], "none")


def test_a_call_may_be_required() -> None:
    assert chat(tools=[TOOL]).prompt.tool_choice == "auto"
    assert chat(tools=[TOOL], tool_choice="required").prompt.tool_choice == "required"
    named = {"type": "function", "function": {"name": "f"}}
    assert chat(tools=[TOOL], tool_choice=named).prompt.tool_choice == "=f"


def test_calls_may_be_held_to_one() -> None:
    assert chat(tools=[TOOL]).prompt.parallel_tool_calls
    assert not chat(tools=[TOOL], parallel_tool_calls=False).prompt.parallel_tool_calls


# --- the form of the answer ----------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"grammar": "", "structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(kind="json_object")),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            Constraint(kind="json_schema", value=SCHEMA),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            Constraint(kind="json_schema", value=SCHEMA),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            Constraint(kind="json_schema", value={}),
        ),
        ({"regex": "a+"}, Constraint(kind="regex", value="a+")),
        ({"grammar": "start: /a/"}, Constraint(kind="grammar", value="start: /a/")),
        ({"json_schema": SCHEMA}, Constraint(kind="json_schema", value=SCHEMA)),
        ({"guided_json": SCHEMA}, Constraint(kind="json_schema", value=SCHEMA)),
        ({"guided_json": '{"type": "null"}'}, Constraint(kind="json_schema", value={"type": "null"})),
        ({"guided_regex": "a+"}, Constraint(kind="regex", value="a+")),
        ({"guided_choice": ["yes", 'n"o']}, Constraint(kind="grammar", value='start: "yes" | "n\\"o"')),
        ({"guided_grammar": "start: /a/"}, Constraint(kind="grammar", value="start: /a/")),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint(kind="json_schema", value=SCHEMA)),
        ({"structured_outputs": {"json_object": True, "regex": None}}, Constraint(kind="json_object")),
    ],
)
def test_every_name_of_a_constraint(fields: dict[str, Any], expected: Constraint | None) -> None:
    request = chat(**fields)
    assert (request.constraint, request.ignored) == (expected, ())


def test_two_constraints_are_one_too_many() -> None:
    with pytest.raises(InvalidRequest, match="send one") as refused:
        chat(regex="a", response_format={"type": "json_object"})
    assert refused.value.param == "regex"


def test_a_tier_that_waits_is_the_batch_class() -> None:
    assert [chat(service_tier=tier).job_class for tier in (None, "auto", "priority", "flex", "batch")] == [
        "interactive",
        "interactive",
        "interactive",
        "batch",
        "batch",
    ]


# --- what is not honoured ------------------------------------------------------------------------------------


def test_ignored_and_unknown_names_are_reported() -> None:
    assert chat(user="u", seed=1, wibble=2).ignored == ("user", "wibble")


@pytest.mark.parametrize("name", sorted(PARAMETERS.refused))
def test_what_would_change_the_answer_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotSupported) as refused:
        chat(None, **{name: {"some": "value"}})
    assert (refused.value.param, refused.value.status) == (name, 400)
    assert name in refused.value.message


@pytest.mark.parametrize("name", sorted(PARAMETERS.refused))
def test_a_value_that_changes_nothing_is_taken(name: str) -> None:
    for neutral in PARAMETERS.refused[name][0]:
        chat(None, **{name: neutral})


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def assistant(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", **fields}]


DEEP: Any = {}
for _ in range(100):
    DEEP = {"a": DEEP}

BAD: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": None}),
    ("model", {"model": ""}),
    ("model", {"model": 5}),
    ("model", {"model": "a\0b"}),
    ("messages", {"messages": None}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hi"}),
    ("messages", {"messages": HI * 10_001}),
    ("messages[0]", {"messages": ["hi"]}),
    ("messages[0].role", {"messages": [{"content": "x"}]}),
    ("messages[1].role", {"messages": [*HI, {"role": "robot", "content": "x"}]}),
    ("messages[0].role", {"messages": [{"role": 1, "content": "x"}]}),
    ("messages[0].content", {"messages": user(None)}),
    ("messages[0].content", {"messages": user(5)}),
    ("messages[0].content", {"messages": user({})}),
    ("messages[0].content", {"messages": user("a\0b")}),
    ("messages[0].content[0]", {"messages": user(["x"])}),
    ("messages[0].content[0].text", {"messages": user([{"type": "text"}])}),
    ("messages[0].content[0].text", {"messages": user([{"type": "text", "text": 1}])}),
    ("messages[0].content[0].type", {"messages": user([{"type": "input_audio", "input_audio": {}}])}),
    ("messages[0].content[0].image_url", {"messages": user([{"type": "image_url"}])}),
    ("messages[0].content[1].type", {"messages": user([{"type": "text", "text": ""}, {}])}),
    ("messages[0].name", {"messages": [{"role": "user", "content": "x", "name": 3}]}),
    ("messages[0].tool_calls", {"messages": assistant(tool_calls="x")}),
    ("messages[0].tool_calls", {"messages": [{**HI[0], "tool_calls": [{}]}]}),
    ("messages[0].tool_calls[0]", {"messages": assistant(tool_calls=["x"])}),
    ("messages[0].tool_calls[0].function", {"messages": assistant(tool_calls=[{}])}),
    ("messages[0].tool_calls[0].function.name", {"messages": assistant(tool_calls=[{"function": {}}])}),
    (
        "messages[0].tool_calls[0].function.arguments",
        {"messages": assistant(tool_calls=[{"function": {"name": "f", "arguments": {}}}])},
    ),
    ("messages[0].tool_calls[0].type", {"messages": assistant(tool_calls=[{"type": "custom"}])}),
    ("messages[0].function_call.name", {"messages": assistant(function_call={})}),
    ("messages[0].function_call", {"messages": [{"role": "user", "content": "a", "function_call": {"name": "f"}}]}),
    ("messages[0].name", {"messages": [{"role": "function", "content": "a"}]}),
    ("functions", {"functions": [{"name": "f"}], "tools": [TOOL]}),
    ("functions[0].name", {"functions": [{"name": "a b"}]}),
    ("functions[1].name", {"functions": [{"name": "f"}, {"name": "f"}]}),
    ("functions[0]", {"functions": ["f"]}),
    ("function_call", {"function_call": {"name": "f"}}),
    ("function_call", {"functions": [{"name": "f"}], "function_call": "required"}),
    ("function_call.name", {"functions": [{"name": "f"}], "function_call": {"name": "g"}}),
    ("add_generation_prompt", {"add_generation_prompt": False}),
    ("add_generation_prompt", {"add_generation_prompt": True, "continue_final_message": True, "messages": assistant()}),
    ("continue_final_message", {"continue_final_message": True}),
    ("continue_final_message", {"continue_final_message": True, "messages": assistant(content="")}),
    ("thinking_budget", {"thinking_budget": 0}),
    ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "x"}]}),
    ("temperature", {"temperature": 2.1}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": "1"}),
    ("temperature", {"temperature": True}),
    ("temperature", {"temperature": 10**30}),
    ("top_p", {"top_p": 1.5}),
    ("top_k", {"top_k": -2}),
    ("top_k", {"top_k": 1.5}),
    ("min_p", {"min_p": -1}),
    ("n", {"n": 0}),
    ("n", {"n": 17}),
    ("n", {"n": "1"}),
    ("n", {"n": True}),
    ("stream", {"stream": "true"}),
    ("stream", {"stream": 1}),
    ("stream_options", {"stream": True, "stream_options": "x"}),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
    ("stop", {"stop": 5}),
    ("stop", {"stop": ["x"] * 17}),
    ("stop[0]", {"stop": ""}),
    ("stop[1]", {"stop": ["x", None]}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -(10**30)}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_completion_tokens", {"max_completion_tokens": "x"}),
    ("presence_penalty", {"presence_penalty": 3}),
    ("frequency_penalty", {"frequency_penalty": -3}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("logit_bias", {"logit_bias": []}),
    ("logit_bias", {"logit_bias": {"x": 1}}),
    ("logit_bias", {"logit_bias": {"-1": 1}}),
    ("logit_bias", {"logit_bias": {"²": 1}}),
    ("logit_bias", {"logit_bias": {"9" * 400: 1}}),
    ("logit_bias.5", {"logit_bias": {"5": 101}}),
    ("logit_bias.5", {"logit_bias": {"5": "x"}}),
    ("logit_bias", {"logit_bias": {str(key): 1 for key in range(1025)}}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": 2**63}),
    ("logprobs", {"logprobs": 5}),
    ("top_logprobs", {"top_logprobs": 5}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("stop_token_ids", {"stop_token_ids": 5}),
    ("stop_token_ids[0]", {"stop_token_ids": [-1]}),
    ("stop_token_ids[0]", {"stop_token_ids": [True]}),
    ("ignore_eos", {"ignore_eos": 1}),
    ("reasoning_effort", {"reasoning_effort": "huge"}),
    ("reasoning_effort", {"reasoning_effort": 1}),
    ("chat_template_kwargs", {"chat_template_kwargs": []}),
    ("chat_template_kwargs", {"chat_template_kwargs": DEEP}),
    ("chat_template_kwargs.messages", {"chat_template_kwargs": {"messages": []}}),
    ("tools", {"tools": {}}),
    ("tools[0]", {"tools": ["x"]}),
    ("tools[0].type", {"tools": [{"type": "web_search"}]}),
    ("tools[0].function", {"tools": [{"type": "function"}]}),
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}),
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
    ("tools[0].function.parameters", {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
    ("tools[0].function.parameters", {"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]}),
    ("tools[1].function.name", {"tools": [TOOL, TOOL]}),
    ("tool_choice", {"tool_choice": 5}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice.type", {"tool_choice": {}}),
    ("tool_choice.type", {"tool_choice": {"type": "allowed_tools"}}),
    ("tool_choice.function.name", {"tools": [TOOL], "tool_choice": {"type": "function"}}),
    ("tool_choice.function.name", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
    ("parallel_tool_calls", {"parallel_tool_calls": "no"}),
    ("service_tier", {"service_tier": 5}),
    ("metadata", {"metadata": []}),
    ("metadata", {"metadata": {str(key): "" for key in range(17)}}),
    ("metadata.k", {"metadata": {"k": 5}}),
    ("regex", {"regex": 5}),
    ("regex", {"regex": "x" * ((1 << 18) + 1)}),
    ("grammar", {"grammar": {}}),
    ("json_schema", {"json_schema": []}),
    ("json_schema", {"json_schema": DEEP}),
    ("guided_json", {"guided_json": "{"}),
    ("guided_choice", {"guided_choice": []}),
    ("guided_choice[1]", {"guided_choice": ["a", 5]}),
    ("structured_outputs", {"structured_outputs": 5}),
    ("structured_outputs.structural_tag", {"structured_outputs": {"structural_tag": "x"}}),
    ("structured_outputs.json_object", {"structured_outputs": {"json_object": 1}}),
    ("tool_choice", {"tool_choice": "always"}),
    ("response_format", {"response_format": "text"}),
    ("response_format.type", {"response_format": {}}),
    ("response_format.type", {"response_format": {"type": "yaml"}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
    ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {}}}),
    ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
    ("response_format.json_schema.name", {"response_format": {"type": "json_schema", "json_schema": {"name": 5}}}),
]


@pytest.mark.parametrize(("param", "fields"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_field_is_named(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert param in refused.value.message
    assert len(refused.value.message) < 400


def test_everything_that_is_taken_can_be_sent() -> None:
    # No request may fail behind the checks, in the encoding of its job.
    request = chat(tools=[TOOL], seed=-(2**63), logit_bias={str(2**31 - 1): 1}, max_tokens=10**30)
    assert encode(request.prompt)
    assert encode(request.sampling)


def test_refusals_are_of_the_right_kind() -> None:
    with pytest.raises(InvalidRequest):
        chat(n=0)


def test_functions_are_tools_in_older_words() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    history = [
        *HI,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}},
        {"role": "function", "name": "f", "content": "out"},
    ]
    old = chat(functions=[function], function_call={"name": "f"}, messages=history)
    assert old.prompt.tools == chat(tools=[TOOL]).prompt.tools
    assert (old.prompt.tool_choice, old.prompt.parallel_tool_calls) == ("=f", False)
    _, called, result = old.prompt.messages or []
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (result["role"], result["content"]) == ("tool", "out")
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]
    assert old.notes.is_legacy and not chat(tools=[TOOL]).notes.is_legacy
    assert not chat(functions=[], function_call="auto").notes.is_legacy


def test_what_a_tool_has_besides_is_told() -> None:
    strange = {"type": "function", "x": 1, "function": {"name": "f", "y": 2, "description": None}}
    request = chat(tools=[strange])
    assert set(request.ignored) == {"tools[0].x", "tools[0].function.y"}
    assert request.prompt.tools == [{"type": "function", "function": {"name": "f"}}]


def test_a_begun_answer_is_continued() -> None:
    begun = [*HI, {"role": "assistant", "content": "Well, "}]
    for extra in ({}, {"add_generation_prompt": False}):
        assert chat(messages=begun, continue_final_message=True, **extra).prompt.continue_final
    assert not chat(messages=begun).prompt.continue_final


def test_a_bound_of_reasoning() -> None:
    assert chat(thinking_budget=7).sampling.thinking_budget == 7
    assert chat().sampling.thinking_budget is None
