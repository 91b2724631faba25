"""The one normal form of conversations, which every dialect builds: OpenAI's chat messages, calls and function tools.

Equal prompts must become equal tokens whatever API they came by, so that they meet each other's cached prefix. So a
content is one string, or with images a list of text and image parts in which no two texts are neighbours; arguments are
values, keys stand in one order, and what says nothing is left out.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import orjson

from gateway.dialects import fields
from shared.messages import Prompt

PART_BREAK = "\n"  # between the text parts of one message
IMAGE_BYTES_PER_TOKEN = 256  # of an image's file, when tokens are estimated
MIN_IMAGE_TOKENS = 64
MAX_IMAGE_TOKENS = 4096

Content = str | list[dict[str, Any]]


def joined(parts: Iterable[str]) -> str:
    """The text parts of one message as its content."""
    return PART_BREAK.join(parts)


def content(parts: Iterable[str | dict[str, Any]]) -> Content:
    """The texts and image parts of one message as its content."""
    given = list(parts)
    if all(isinstance(part, str) for part in given):
        return joined(part for part in given if isinstance(part, str))
    made: list[dict[str, Any]] = []
    for is_text, run in groupby(given, lambda part: isinstance(part, str)):
        if not is_text:
            made += [part for part in run if isinstance(part, dict)]
        elif text := joined(part for part in run if isinstance(part, str)):
            made.append({"type": "text", "text": text})
    return made


def system(content: str) -> dict[str, Any]:
    """A message of the operator."""
    return {"role": "system", "content": content}


def user(content: Content) -> dict[str, Any]:
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


def result(call_id: str, content: Content) -> dict[str, Any]:
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
        if isinstance(message["content"], str):
            length += len(message["content"])
        length += 16
        if "tool_calls" in message:
            length += len(orjson.dumps(message["tool_calls"]))
    for part in _parts(prompt):
        if part["type"] == "text":
            length += len(part["text"])
    return length // 4 + sum(image_tokens(one * 3 // 4) for one in image_lengths(prompt))


def image_tokens(num_bytes: int) -> int:
    """How many tokens an image file of this size takes, roughly: its pixels decide, and are not looked at."""
    return min(max(num_bytes // IMAGE_BYTES_PER_TOKEN, MIN_IMAGE_TOKENS), MAX_IMAGE_TOKENS)


def image_lengths(prompt: Prompt) -> list[int]:
    """The characters of base64 of each image in a prompt."""
    return [len(part["data"]) for part in _parts(prompt) if part["type"] == "image"]


def image_paths(prompt: Prompt) -> Iterator[str]:
    """Where the images stand in a prompt, in their order, as workers name them: ``messages[0].content[1]``."""
    for index, message in enumerate(prompt.messages or ()):
        if isinstance(message["content"], list):
            for at, part in enumerate(message["content"]):
                if part["type"] == "image":
                    yield f"messages[{index}].content[{at}]"


def _parts(prompt: Prompt) -> Iterator[dict[str, Any]]:
    for message in prompt.messages or ():
        if isinstance(message["content"], list):
            yield from message["content"]
