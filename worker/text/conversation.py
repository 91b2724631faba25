"""Chat messages as clients send them, brought into the one shape a model's template reads.

Equal conversations in different wire shapes must give identical tokens, or no prefix cache would ever hit: a text and
a list with one text part, missing and empty content beside tool calls, tool arguments as JSON text and as an object.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from worker.text.errors import NoSight, PromptError
from worker.text.system import Place, place_system

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}

# Names under which clients send the reasoning of earlier turns; templates read the first, some the second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

_SHORT_ID = 9
_IMAGE = "\udcff"  # stands for an image while contents are texts: half of a surrogate pair, which no text has


@dataclass(frozen=True)
class Shape:
    """How a template wants its messages. `worker.text.traits` finds it out by trying."""

    content: Literal["text", "parts"] = "text"
    joiner: str = "\n"  # between the text parts of one message
    arguments: Literal["object", "text"] = "object"
    no_content: Literal["absent", "none", "empty"] = "absent"  # beside tool calls
    system: Place = "anywhere"
    developer: bool = False  # knows the role; otherwise it is a system message
    short_ids: bool = False  # tool call ids must have nine letters and digits
    images: bool = False  # takes parts that are images


def normalise(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    """Return copies of `messages` in the given shape. Raises `PromptError` on what the model cannot take.

    A message with images has parts, whatever the shape of others; its images are the parts `{"type": "image"}`.
    """
    if not messages:
        raise PromptError("messages is empty: send at least one message.", "messages")
    result = place_system([_message(message, index, shape) for index, message in enumerate(messages)], shape.system)
    if shape.content == "parts":
        return [_with_parts(message) for message in result]
    return [_with_parts(message) if _has_image(message) else message for message in result] if shape.images else result


def image_parts(messages: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The parts of messages that are images, in order, each with its place."""
    found = []
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            found += [
                (f"messages[{index}].content[{place}]", part) for place, part in enumerate(content) if _is_image(part)
            ]
    return found


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"


def _message(message: dict[str, Any], index: int, shape: Shape) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise PromptError(f"messages[{index}] is not an object with a role.", "messages")
    result = {key: value for key, value in message.items() if value is not None}
    if result["role"] == "developer" and not shape.developer:
        result["role"] = "system"
    content = _content(result.get("content"), index, shape)
    calls = result.get("tool_calls")
    if calls:
        result["tool_calls"] = [_tool_call(call, index, shape) for call in calls]
    elif "tool_calls" in result:
        del result["tool_calls"]
    if content or not calls:
        result["content"] = content
    elif shape.no_content == "absent":
        result.pop("content", None)
    else:
        result["content"] = None if shape.no_content == "none" else ""
    if shape.short_ids and isinstance(result.get("tool_call_id"), str):
        result["tool_call_id"] = _short_id(result["tool_call_id"])
    reasoning = next((result[key] for key in _REASONING_FIELDS if key in result), None)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _content(content: Any, index: int, shape: Shape) -> str:
    """The text of a message's content in any of its wire shapes, with a mark for each image."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PromptError(f"messages[{index}].content is neither text nor a list of parts.", "messages")
    if not shape.images:
        return shape.joiner.join(_part(part, index, place) for place, part in enumerate(content))
    texts: list[str] = []
    for place, part in enumerate(content):
        if _is_image(part):
            texts.append(_IMAGE)
            continue
        text = _part(part, index, place)
        if _IMAGE in text:
            raise PromptError(f"messages[{index}] is not valid Unicode text.", "messages")
        texts.append(shape.joiner + text if texts and texts[-1] != _IMAGE else text)
    return "".join(texts)


def _part(part: Any, index: int, place: int) -> str:
    if isinstance(part, str):
        return part
    if _is_image(part):
        raise NoSight(f"messages[{index}].content[{place}]")
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(_TEXT_PARTS[kind]) if kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise PromptError(
            f"messages[{index}] has a content part of type {kind!r}. This model takes text only.", "messages"
        )
    return text


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    parts: list[dict[str, str]] = []
    for place, text in enumerate(content.split(_IMAGE)):
        if place:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return message | {"content": parts or [{"type": "text", "text": content}]}


def _has_image(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, str) and _IMAGE in content


def _tool_call(call: Any, index: int, shape: Shape) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise PromptError(f"messages[{index}].tool_calls has an entry without a function name.", "messages")
    result = {key: value for key, value in call.items() if value is not None}
    result["function"] = {**function, "arguments": _arguments(function.get("arguments"), shape)}
    if shape.short_ids and isinstance(result.get("id"), str):
        result["id"] = _short_id(result["id"])
    return result


def _arguments(arguments: Any, shape: Shape) -> Any:
    """Clients send arguments as JSON text; templates mostly iterate over an object."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            return arguments  # a model wrote it, and only the model has to read it
    elif arguments is None:
        value = {}
    return json.dumps(value, ensure_ascii=False) if shape.arguments == "text" else value


def _short_id(id: str) -> str:
    if len(id) == _SHORT_ID and id.isalnum() and id.isascii():
        return id
    return hashlib.blake2b(id.encode()).hexdigest()[:_SHORT_ID]
