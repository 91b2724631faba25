"""Whatever a body of these APIs holds, reading it gives a request or a refusal that names what is wrong."""

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import anthropic_messages, openai_responses
from gateway.dialects.conversation import image_paths
from gateway.errors import ApiError
from tests.support import pictures

MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, pictures.block()]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x", "is_error": True}]},
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object"}, "defer_loading": False}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 3, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["x"],
    "temperature": 0.5,
    "top_k": 3,
}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, pictures.input_part()]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "e"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x"},
        {"type": "local_shell_call", "call_id": "e", "action": {"type": "exec", "command": ["ls"]}},
    ],
    "tools": [
        {"type": "function", "name": "f", "parameters": {}, "strict": None},
        {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "top_logprobs": 1,
}
NUMBER = st.integers(-(2**63), 2**64 - 1)  # what JSON gives as a whole number; larger ones come as floats
STRANGE = st.one_of(
    st.none(), st.booleans(), NUMBER, st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.just([]), st.just({}), st.just([[]]), st.just({"type": "text"}), st.lists(NUMBER, max_size=2),
    st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=3), max_size=2),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a body where something else might stand."""
    inner: list[tuple[Any, ...]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        inner += [(*path, key), *places(one, (*path, key))]
    return inner


@pytest.mark.parametrize(
    ("parse", "body"),
    [(anthropic_messages.parse, MESSAGE), (openai_responses.parse, RESPONSE)],
    ids=["messages", "responses"],
)
def test_mutations(parse: Any, body: dict[str, Any]) -> None:
    parse(body, {})

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(places(body)), STRANGE), min_size=1, max_size=3))
    def mutated(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        changed = copy.deepcopy(body)
        for path, value in changes:
            parent = changed
            try:
                for key in path[:-1]:
                    parent = parent[key]
                if isinstance(path[-1], int if isinstance(parent, list) else str):
                    parent[path[-1]] = copy.deepcopy(value)
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took this place away
        try:
            request = parse(changed, {})
        except ApiError as error:
            assert 400 <= error.status < 500
            assert error.param
        else:
            orjson.dumps(request.prompt.messages)
            assert len(request.images) == len(list(image_paths(request.prompt)))
            for message in request.prompt.messages or []:
                kinds = {part["type"] for part in message["content"]} if isinstance(message["content"], list) else {""}
                assert kinds in ({""}, {"image"}, {"image", "text"})

    mutated()
