"""The one normal form of conversations, which every dialect builds: OpenAI's chat messages, calls and function tools.

Equal prompts must become equal tokens whatever API they came by, so that they meet each other's cached prefix. So a
content is one string, arguments are values, keys stand in one order, and what says nothing is left out.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from gateway.dialects import fields
from shared.messages import Prompt

PART_BREAK = "\n"  # between the text parts of one message


def joined(parts: Iterable[str]) -> str:
    """The text parts of one message as its content."""
    return PART_BREAK.join(parts)


def system(content: str) -> dict[str, Any]:
    """A message of the operator."""
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str, reasoning: str | None = None, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """An earlier answer."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def call(identifier: str, name: str, arguments: Any) -> dict[str, Any]:
    """A tool call of an earlier answer. `arguments`: of `arguments_of`, or an object."""
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: str) -> dict[str, Any]:
    """What a tool call came to."""
    return {"role": "tool", "content": content, "tool_call_id": call_id}


def function(name: str, description: str | None, parameters: dict[str, Any] | None, strict: bool) -> dict[str, Any]:
    """A tool that the model may call."""
    inner: dict[str, Any] = {"name": name}
    if description is not None:
        inner["description"] = description
    if parameters is not None:
        inner["parameters"] = parameters
    if strict:
        inner["strict"] = True
    return {"type": "function", "function": inner}


def can_continue(messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is the beginning of an answer: text of the assistant, and no call."""
    last = messages[-1]
    return last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last


def arguments_of(text: str, where: str) -> Any:
    """The arguments of a call, from JSON text: templates print JSON themselves, so it goes to them as its value."""
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text  # a model may have written this; the next turn must still be possible
    fields.check_depth(value, where)
    return value if isinstance(value, dict) else text


def estimate_tokens(prompt: Prompt) -> int:
    """How long a prompt is, roughly: for queues, never for limits."""
    length = len(orjson.dumps(prompt.tools)) if prompt.tools else 0
    for message in prompt.messages or ():
        length += len(message["content"]) + 16
        if "tool_calls" in message:
            length += len(orjson.dumps(message["tool_calls"]))
    return length // 4
