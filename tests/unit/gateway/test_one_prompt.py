"""One conversation, sent to three APIs in all shapes that clients use, is one prompt: so it has one cached prefix."""

from typing import Any

import orjson
import pytest

from gateway.dialects import anthropic_messages, openai_chat, openai_responses
from shared.messages import Prompt

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
MARK = {"cache_control": {"type": "ephemeral"}}


def chat(*, parts: bool) -> Prompt:
    def content(text: str, kind: str = "text") -> Any:
        return [{"type": kind, "text": text}] if parts else text

    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    function = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
    body = {
        "model": "m",
        "messages": [
            {"role": "developer" if parts else "system", "content": content("Be brief.")},
            {"role": "user", "content": content("Weather?")},
            {"role": "assistant", "content": content("Wait."), "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": content("Rain.")},
            {"role": "user", "content": content("And?")},
        ],
        "tools": [{"type": "function", "function": function}],
        "reasoning_effort": "high",
    }
    return openai_chat.parse(body, {}).prompt


def messages(*, parts: bool) -> Prompt:
    def content(text: str) -> Any:
        return [{"type": "text", "text": text, **MARK}] if parts else text

    body = {
        "model": "m",
        "max_tokens": 5,
        "system": content("Be brief."),
        "messages": [
            {"role": "user", "content": content("Weather?")},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": content("Rain.")},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
        "tools": [
            {"input_schema": SCHEMA, "name": "weather", "description": "The weather.", **(MARK if parts else {})},
        ],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
    }
    return anthropic_messages.parse(body, {}).prompt


def responses(*, parts: bool) -> Prompt:
    def content(text: str, kind: str = "input_text") -> Any:
        return [{"type": kind, "text": text}] if parts else text

    system = {"role": "developer", "content": content("Be brief.")}
    body = {
        "model": "m",
        **({} if parts else {"instructions": "Be brief."}),
        "input": [
            *([system] if parts else []),
            {"role": "user", "content": content("Weather?")},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": content("Wait.", "output_text")},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
            {"type": "function_call_output", "call_id": "c1", "output": content("Rain.")},
            {"role": "user", "content": content("And?")},
        ],
        "tools": [
            {"type": "function", "name": "weather", "description": "The weather.", "parameters": SCHEMA, "strict": None}
        ],
        "reasoning": {"effort": "high"},
    }
    return openai_responses.parse(body, {}).prompt


@pytest.mark.parametrize("parts", [False, True], ids=["strings", "parts"])
@pytest.mark.parametrize("surface", [chat, messages, responses])
def test_one_prompt(surface: Any, parts: bool) -> None:
    prompt, expected = surface(parts=parts), chat(parts=False)
    assert prompt == expected
    # Templates print tools and arguments as they stand, so the order of their keys must be the same too.
    assert orjson.dumps(prompt.tools) == orjson.dumps(expected.tools)
    assert orjson.dumps(prompt.messages) == orjson.dumps(expected.messages)
