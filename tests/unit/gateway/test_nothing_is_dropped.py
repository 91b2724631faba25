"""No key of a body is dropped in silence, however deep it stands: it is refused or told by its path."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.dialects import (
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from gateway.errors import ApiError
from gateway.exchange import MAX_IGNORED, MAX_LOOKED, ignored_names
from tests.support import pictures

MARK = {"cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FREE = {"parameters", "schema", "input_schema", "metadata", "chat_template_kwargs", "logit_bias", "guided_json", "json"}

CALL = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": SCHEMA}}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "s", **MARK}]},
        {"role": "user", "name": "n", "content": [{"type": "text", "text": "a"}, pictures.chat_part()]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "annotations": [], "audio": None},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "ok"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "schema": SCHEMA}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "logit_bias": {"1": 1},
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": [{"type": "text", "text": "a"}]},
    "chat_template_kwargs": {"a": 1},
}
USER: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
OLDER = USER | {"functions": [TOOL["function"]], "function_call": {"name": "f"}}
OBJECT = USER | {"response_format": {"type": "json_object", "schema": SCHEMA}}
PLAIN = USER | {"response_format": {"type": "text"}}
OUTPUTS = USER | {"structured_outputs": {"json": SCHEMA}}

MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s", **MARK}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a", "citations": None}, pictures.block()]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "a"},
                {"type": "server_tool_use", "id": "w", "name": "web_search", "input": {}},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}, **MARK},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "is_error": False,
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "tool_reference", "tool_name": "f"},
                        {
                            "type": "search_result",
                            "source": "s",
                            "title": "t",
                            "content": [{"type": "text", "text": "a"}],
                        },
                    ],
                },
                {"type": "document", "title": "t", "context": "c", "source": {"type": "text", "data": "a"}},
            ],
        },
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": "b"},
    ],
    "tools": [
        {"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True, **MARK},
        {"name": "g", "input_schema": SCHEMA, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search"},
    ],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 3, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "metadata": {"user_id": "u"},
    "context_management": {"edits": [{"type": "x"}]},
}
ADDRESS = {"type": "image", "source": {"type": "url", "url": pictures.uri()}}
OTHER: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": [ADDRESS]}],
    "tools": [{"name": "f", "input_schema": SCHEMA}],
    "tool_choice": {"type": "any"},
    "thinking": {"type": "adaptive"},
    "output_format": {"type": "json_schema", "schema": SCHEMA},
}

FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": None}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "x"}
CUSTOM = {"type": "custom", "name": "p", "description": "d", "format": GRAMMAR}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, pictures.input_part()]},
        {
            "type": "reasoning",
            "id": "r",
            "summary": [{"type": "summary_text", "text": "s"}],
            "content": [{"type": "reasoning_text", "text": "s"}],
            "encrypted_content": "e",
        },
        {
            "type": "message",
            "id": "m",
            "status": "completed",
            "phase": "final_answer",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x", "status": "completed"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "x"},
        {"type": "local_shell_call", "call_id": "e", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "e", "output": "x"},
        {"type": "web_search_call", "id": "w", "action": {"type": "search"}},
    ],
    "tools": [
        FUNCTION,
        CUSTOM,
        CUSTOM | {"name": "q", "format": {"type": "text"}},
        {"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION, {"type": "web_search"}]},
        {"type": "web_search", "filters": {"allowed_domains": []}},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}],
    },
    "text": {"format": {"type": "json_schema", "name": "n", "description": "d", "strict": True, "schema": SCHEMA}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "stream_options": {"include_obfuscation": False},
    "metadata": {"a": "b"},
    "prompt_cache_options": {"mode": "auto"},
}
CHOICE = {"model": "m", "input": "a", "tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}}
FORMATS = [{"model": "m", "input": "a", "text": {"format": {"type": kind}}} for kind in ("text", "json_object")]

BODIES: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *((openai_chat.parse, body) for body in (CHAT, OLDER, OBJECT, PLAIN, OUTPUTS)),
    *((anthropic_messages.parse, body) for body in (MESSAGES, OTHER)),
    (anthropic_messages.parse_count, MESSAGES),
    *((openai_responses.parse, body) for body in (RESPONSE, CHOICE, *FORMATS)),
    (openai_completions.parse, {"model": "m", "prompt": "a", "response_format": {"type": "text"}}),
    (openai_embeddings.parse, {"model": "m", "input": ["a"]}),
]
NAMES = [f"{parse.__module__.rpartition('.')[2]}-{index}" for index, (parse, _) in enumerate(BODIES)]


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the objects of a body stand, but for those whose keys are the client's own."""
    if isinstance(value, dict):
        yield path
        is_call = value.get("type") in ("tool_use", "local_shell_call", "server_tool_use")
        for key, inner in value.items():
            if key not in FREE and key != "cache_control" and not (is_call and key in ("input", "action")):
                yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, (*path, index))


def written(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).removeprefix(".")


def is_told(path: str, names: tuple[str, ...]) -> bool:
    """Whether it is named, or something that it stands in."""
    return any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in names)


@pytest.mark.parametrize(("parse", "body"), BODIES, ids=NAMES)
def test_a_key_that_nobody_knows_is_told_wherever_it_stands(parse: Callable[..., Any], body: dict[str, Any]) -> None:
    before = parse(body, {})
    for path in objects(body):
        changed = copy.deepcopy(body)
        place = changed
        for key in path:
            place = place[key]
        place["zz"] = 1
        where = written((*path, "zz"))
        try:
            after = parse(changed, {})
        except ApiError as error:
            assert error.param == where, error.message
        else:
            assert is_told(where, after.ignored), where
            assert after.prompt == before.prompt


@pytest.mark.parametrize(("parse", "body"), BODIES, ids=NAMES)
def test_what_has_an_effect_or_needs_none_is_not_told(parse: Callable[..., Any], body: dict[str, Any]) -> None:
    known = ("metadata", "prediction", "context_management", "stream_options", "prompt_cache_options")
    served = [name for name in parse(body, {}).ignored if name not in known]
    for name in served:  # tools of other servers, and what they left
        place: Any = body
        for key in name.replace("[", ".").replace("]", "").split("."):
            place = place[int(key) if key.isdecimal() else key]
        assert str(place["type"]).startswith(("web_search", "server_tool_use")), name


def chat(*messages: dict[str, Any], **fields: Any) -> Any:
    return openai_chat.parse({"model": "m", "messages": [*messages], **fields}, {})


def messages(**fields: Any) -> Any:
    return anthropic_messages.parse({"max_tokens": 1, **USER, **fields}, {})


def test_keys_of_other_roles_are_told() -> None:
    user = {"role": "user", "content": "a"}
    assert chat(user | {"tool_call_id": "c", "refusal": "x", "reasoning_content": "x"}).ignored == (
        "messages[0].tool_call_id",
        "messages[0].refusal",
        "messages[0].reasoning_content",
    )
    result = {"role": "function", "name": "f", "content": "a", "tool_call_id": "c", "tool_calls": [CALL]}
    assert set(chat(result).ignored) == {"messages[0].tool_call_id", "messages[0].tool_calls"}


def test_a_refusal_is_what_was_said() -> None:
    said = {"role": "assistant", "content": None, "refusal": "no"}
    assert chat(said).prompt.messages[0]["content"] == "no"
    both = chat(said | {"content": "yes"})
    assert (both.prompt.messages[0]["content"], both.ignored) == ("yes", ("messages[0].refusal",))


def test_words_that_something_else_makes_void_are_told() -> None:
    user = {"role": "user", "content": "a"}
    older = {"functions": [TOOL["function"]], "tool_choice": "none", "parallel_tool_calls": True}
    assert chat(user, **older).ignored == ("tool_choice", "parallel_tool_calls")
    assert chat(user, tools=[TOOL], function_call="none").ignored == ("function_call",)
    assert chat(user, response_format={"type": "text", "json_schema": {}}).ignored == ("response_format.json_schema",)
    assert messages(thinking={"type": "adaptive", "budget_tokens": 5}).ignored == ("thinking.budget_tokens",)
    assert messages(thinking={"type": "adaptive", "display": "loud"}).ignored == ("thinking.display",)
    assert messages(tool_choice={"type": "auto", "name": "f"}).ignored == ("tool_choice.name",)
    form = {"type": "json_schema", "schema": {}}
    assert messages(output_config={"format": form}, output_format=form).ignored == ("output_format",)


def test_what_was_told_of_an_earlier_request_is_not_told_again() -> None:
    past = openai_responses.Past([{"role": "user", "content": "a", "zz": 1}], {"x": {"role": "user", "content": "b"}})
    items = [{"type": "item_reference", "id": "x", "zz": 1}, {"role": "user", "content": "c"}]
    request = openai_responses.read({"model": "m", "input": items}, past)
    assert request.ignored == ("input[0].zz",)
    assert [one["content"] for one in request.prompt.messages or []] == ["a", "b", "c"]


def told(names: list[str]) -> list[str]:
    [(_, value)] = ignored_names(names)
    return value.decode().split(", ")


def test_what_repeats_hides_nothing_else_in_the_header() -> None:
    repeated = [f"messages[{index}].zz" for index in range(5000)]
    assert told([*repeated, "tools[0].zz"]) == ["messages[0].zz", "tools[0].zz", "+4999"]
    assert told(repeated[:3]) == repeated[:3]
    many = [f"a{index}" for index in range(2 * MAX_LOOKED)]
    assert told(many) == [*many[:MAX_IGNORED], f"+{len(many) - MAX_IGNORED}"]
    assert told(["x" * 70_000, "a\nb"]) == ["x" * 64, "a?b"]
