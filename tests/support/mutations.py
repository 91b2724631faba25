"""Valid request bodies, and what becomes of them in the hands of a stranger. For property tests; nothing here asserts.

A mutation replaces, removes, repeats or adds a value somewhere in a body. The values are those that break servers:
other types, huge numbers, deep nesting, NUL, half of a surrogate pair, numbers that JSON does not have.
"""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from tests.support import pictures

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def bodies(chat: str, embedder: str) -> dict[str, list[dict[str, Any]]]:
    """Valid bodies by path, rich in parameters."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
    ]
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 2, "logit_bias": {"5": 1.0}}
    flat = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    anthropic_tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]},
    ]
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "ok"},
    ]
    seen = [
        {"role": "user", "content": [{"type": "text", "text": "u"}, pictures.chat_part()]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [pictures.chat_part("image/jpeg")]},
    ]
    seen[0]["content"][1]["image_url"]["detail"] = "low"
    seen_blocks = [
        {"role": "user", "content": [pictures.block(), {"type": "text", "text": "u"}]},
        blocks[1],
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": [pictures.block("image/webp")]}],
        },
    ]
    seen_items = [
        {"role": "user", "content": [{"type": "input_text", "text": "u"}, pictures.input_part() | {"detail": "auto"}]},
        items[1],
        {"type": "function_call_output", "call_id": "c", "output": [pictures.input_part("image/gif")]},
    ]
    return {
        "/v1/chat/completions": [
            {"model": chat, "messages": seen, "max_tokens": 4},
            {"model": chat, "messages": conversation, "tools": [TOOL], "tool_choice": "auto", **sampling},
            {
                "model": chat,
                "messages": conversation[:2],
                "stream": True,
                "stream_options": {"include_usage": True},
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
                "reasoning_effort": "low",
                "max_completion_tokens": 4,
                "logprobs": True,
                "top_logprobs": 2,
            },
            {"model": chat, "messages": conversation[:1], "guided_choice": ["a"], "chat_template_kwargs": {"x": 1}},
            {
                "model": chat,
                "messages": [*conversation[:2], {"role": "assistant", "content": "b"}],
                "continue_final_message": True,
                "add_generation_prompt": False,
                "thinking_budget": 9,
            },
            {
                "model": chat,
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                    {"role": "function", "name": "f", "content": "ok"},
                ],
                "functions": [TOOL["function"]],
                "function_call": {"name": "f"},
            },
        ],
        "/v1/completions": [
            {"model": chat, "prompt": ["a", "b"], "max_tokens": 3, "echo": True, "best_of": 3, **sampling},
            {"model": chat, "prompt": [1, 2, 3], "logprobs": 2, "stream": True, "regex": "a+"},
        ],
        "/v1/embeddings": [
            {"model": embedder, "input": ["a", "b"], "encoding_format": "float", "dimensions": 2},
            {"model": embedder, "input": [[1, 2], [3]]},
        ],
        "/v1/messages": [
            {"model": chat, "messages": seen_blocks, "max_tokens": 4},
            {
                "model": chat,
                "messages": blocks,
                "max_tokens": 4,
                "system": [{"type": "text", "text": "s"}],
                "tools": [anthropic_tool],
                "tool_choice": {"type": "auto"},
                "thinking": {"type": "enabled", "budget_tokens": 1024},
                "stop_sequences": ["x"],
            },
            {
                "model": chat,
                "messages": [{"role": "user", "content": "u"}],
                "max_tokens": 4,
                "stream": True,
                "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
            },
            {
                "model": chat,
                "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}],
                "max_tokens": 4,
            },
        ],
        "/v1/messages/count_tokens": [
            {"model": chat, "messages": blocks, "tools": [anthropic_tool]},
            {"model": chat, "messages": seen_blocks},
        ],
        "/v1/responses": [
            {"model": chat, "input": seen_items, "max_output_tokens": 4},
            {"model": chat, "input": "u", "background": True, "stream": True, "max_output_tokens": 4},
            {"model": chat, "input": items, "tools": [flat], "instructions": "i", "max_output_tokens": 4},
            {
                "model": chat,
                "input": "u",
                "tools": [
                    {
                        "type": "custom",
                        "name": "p",
                        "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'},
                    }
                ],
                "tool_choice": {"type": "custom", "name": "p"},
                "truncation": "auto",
                "reasoning": {"max_tokens": 9},
            },
            {
                "model": chat,
                "input": "u",
                "stream": True,
                "store": False,
                "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
                "reasoning": {"effort": "low", "summary": "auto"},
                "include": ["reasoning.encrypted_content"],
            },
        ],
        "/v1/responses/input_tokens": [
            {"model": chat, "input": items, "tools": [flat]},
            {"model": chat, "input": seen_items},
        ],
    }


def _nested(depth: int, *, as_list: bool) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if as_list else {"a": value}
    return value


_JUNK = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**64), 10**40, 1.5, 1e308, float("nan"), float("inf")]
    ),
    st.sampled_from(["", " ", "\0", "\ud800", "é" * 300, "x" * 70_000, "auto", "none", "text", "user", "1", "{", "*"]),
    st.sampled_from([[], {}, [[]], [None], [{}], {"": None}, {"type": None}, {"type": "text"}, {"a": "\udfff"}]),
    st.builds(_nested, st.sampled_from([10, 70, 300]), as_list=st.booleans()),
    st.sampled_from(["data:image/png;base64,", "data:,", "https://x/y.png", "image/png", "iVBORw0KGgo", "QQ=="]),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=4),
)

_KEYS = st.one_of(st.text(max_size=5), st.sampled_from(["type", "id", "name", "\ud800"]))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


@st.composite
def mutated(draw: st.DrawFn, valid: list[dict[str, Any]]) -> bytes:
    """The JSON of one of these bodies after one to three mutations."""
    body = copy.deepcopy(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(body)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "add"]))
        if action == "replace":
            container[key] = copy.deepcopy(draw(_JUNK))
        elif action == "remove":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[draw(_KEYS)] = copy.deepcopy(draw(_JUNK))
        elif isinstance(container, list):
            container *= draw(st.sampled_from([2, 40]))
    return json.dumps(body).encode()
