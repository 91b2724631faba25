"""The messages of a chat body, checked and brought to one form.

A list of text parts becomes one string, so that a client which sends the same message now as text and now as parts
(some do) still meets its cached prefix.
"""

from typing import Any

from gateway.dialects import conversation, fields
from gateway.dialects.fields import bad
from gateway.errors import NotSupported

MAX_MESSAGES = 10_000
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_KEPT = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "function_call"}
_WITHOUT_MEANING = {"refusal", "annotations", "audio"}  # of earlier answers, sent back as null or []


def chat_messages(body: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """(messages as a chat template takes them, paths of keys without effect). Raises InvalidRequest."""
    messages = fields.array(body, "messages", MAX_MESSAGES)
    if messages is None:
        raise bad("messages", "is required: a non-empty array")
    if not messages:
        raise bad("messages", "must not be empty")
    dropped: list[str] = []
    return [_message(one, f"messages[{index}]", dropped) for index, one in enumerate(messages)], dropped


def _message(message: object, where: str, dropped: list[str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad(where, "must be an object", message)
    path = f"{where}."
    role = fields.string(message, "role", path)
    if role not in ROLES:
        raise bad(f"{path}role", f"must be one of {', '.join(ROLES)}", role if role is not None else "null")
    for name in message.keys() - _KEPT:
        if message[name] and name == "audio":
            raise NotSupported(f"{path}{name} is not supported: send its text.", param=path + name)
        if message[name] is not None and name not in _WITHOUT_MEANING:
            dropped.append(path + name)
    if role == "function":
        return _function_result(message, path)
    checked: dict[str, Any] = {
        "role": "system" if role == "developer" else role,  # templates know no developer
        "content": _content(message, path, may_lack=role == "assistant"),
    }
    for name in ("name", "reasoning_content"):
        if (value := fields.string(message, name, path)) is not None:
            checked[name] = value
    calls = fields.array(message, "tool_calls", 1024, path)
    if calls:
        if role != "assistant":
            raise bad(f"{path}tool_calls", "belong to the role assistant")
        checked["tool_calls"] = [_call(call, f"{path}tool_calls[{index}]") for index, call in enumerate(calls)]
    if (function := fields.mapping(message, "function_call", path)) is not None:
        if role != "assistant" or calls:
            raise bad(f"{path}function_call", "belongs to the role assistant, and not beside tool_calls")
        checked["tool_calls"] = [_called(function, f"{path}function_call", None)]
    if role == "tool":
        identifier = fields.string(message, "tool_call_id", path)
        if not identifier:
            raise bad(f"{path}tool_call_id", "is required for the role tool")
        checked["tool_call_id"] = identifier
    return checked


def _content(message: dict[str, Any], path: str, *, may_lack: bool) -> str:
    content, where = message.get("content"), f"{path}content"
    if content is None:
        if may_lack:
            return ""
        raise bad(where, "is required: a string or an array of text parts")
    if isinstance(content, str):
        return fields.text(content, where)
    if not isinstance(content, list):
        raise bad(where, "must be a string or an array of text parts", content)
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part(part: object, where: str) -> str:
    if not isinstance(part, dict):
        raise bad(where, "must be an object", part)
    kind = fields.string(part, "type", f"{where}.")
    if kind == "refusal":
        return fields.string(part, "refusal", f"{where}.") or ""
    if kind != "text":
        raise NotSupported(
            f"{where}.type {(kind or 'null')[:40]!r} is not supported: this model takes text only.",
            param=f"{where}.type",
        )
    text = fields.string(part, "text", f"{where}.")
    if text is None:
        raise bad(f"{where}.text", "is required")
    return text


def _call(call: object, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise bad(where, "must be an object", call)
    if fields.string(call, "type", f"{where}.") not in (None, "function"):
        raise bad(f"{where}.type", 'must be "function"', call["type"])
    function = fields.mapping(call, "function", f"{where}.")
    if function is None:
        raise bad(f"{where}.function", "is required")
    return _called(function, f"{where}.function", fields.string(call, "id", f"{where}.") or "")


def _called(function: dict[str, Any], where: str, identifier: str | None) -> dict[str, Any]:
    """A call. `identifier`: None for one in the older form, which had none."""
    name = fields.string(function, "name", f"{where}.")
    if not name:
        raise bad(f"{where}.name", "is required")
    arguments = conversation.arguments_of(fields.string(function, "arguments", f"{where}.") or "", f"{where}.arguments")
    return conversation.call(_function_id(name) if identifier is None else identifier, name, arguments)


def _function_result(message: dict[str, Any], path: str) -> dict[str, Any]:
    """What a call in the older form came to."""
    name = fields.string(message, "name", path)
    if not name:
        raise bad(f"{path}name", "is required for the role function")
    return conversation.result(_function_id(name), _content(message, path, may_lack=False)) | {"name": name}


def _function_id(name: str) -> str:
    """In place of the id that calls in the older form do not have."""
    return f"call_{name}"
