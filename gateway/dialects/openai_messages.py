"""The messages of a chat body, checked and brought to one form.

A list of text parts becomes one string, so that a client which sends the same message now as text and now as parts
(some do) still meets its cached prefix. Images may stand in messages of the user and in results of tools.
"""

from typing import Any

from gateway.dialects import conversation, fields
from gateway.dialects.fields import bad
from gateway.dialects.images import Images, check_detail, no_place
from gateway.dialects.parameters import note_strangers
from gateway.errors import NotSupported

MAX_MESSAGES = 10_000
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SAID = frozenset(("role", "content", "name", "cache_control"))
_OF_ROLE = {  # what has an effect, or is known to need none; calls in other roles are refused
    "assistant": _SAID | {"reasoning_content", "refusal", "annotations", "audio"},
    "tool": _SAID | {"tool_call_id"},
}
_CALLS = frozenset(("tool_calls", "function_call"))
_SEEING = ("user", "tool", "function")  # roles whose messages may hold images
_TEXT = frozenset(("type", "text", "cache_control", "annotations"))
_REFUSAL = frozenset(("type", "refusal"))
_CALL, _FUNCTION = frozenset(("id", "type", "function", "index")), frozenset(("name", "arguments"))
_IMAGE, _ADDRESS = frozenset(("type", "image_url", "cache_control")), frozenset(("url", "detail"))
_OTHERS = {"input_audio": "audio", "file": "files", "video_url": "videos"}


def chat_messages(body: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """(messages in their normal form, paths of keys without effect, paths of the images). Raises InvalidRequest."""
    messages = fields.array(body, "messages", MAX_MESSAGES)
    if messages is None:
        raise bad("messages", "is required: a non-empty array")
    if not messages:
        raise bad("messages", "must not be empty")
    dropped: list[str] = []
    images = Images()
    read = [_message(one, f"messages[{index}]", dropped, images) for index, one in enumerate(messages)]
    return read, dropped, images.places


def _message(message: object, where: str, dropped: list[str], images: Images) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad(where, "must be an object", message)
    path = f"{where}."
    role = fields.string(message, "role", path)
    if role not in ROLES:
        raise bad(f"{path}role", f"must be one of {', '.join(ROLES)}", role if role is not None else "null")
    if message.get("audio"):
        raise NotSupported(f"{path}audio is not supported: send its text.", param=f"{path}audio")
    known = _OF_ROLE.get(role, _SAID)
    note_strangers(message, path, known if role == "function" else known | _CALLS, dropped)
    if role == "function":
        return _function_result(message, path, dropped, images)
    checked: dict[str, Any] = {
        "role": "system" if role == "developer" else role,  # templates know no developer
        "content": _content(message, path, dropped, images),
    }
    for name in ("name", "reasoning_content"):
        if name in known and (value := fields.string(message, name, path)) is not None:
            checked[name] = value
    if role == "assistant" and (refusal := fields.string(message, "refusal", path)):
        if checked["content"]:
            dropped.append(f"{path}refusal")
        else:
            checked["content"] = refusal  # it is what was said
    calls = fields.array(message, "tool_calls", 1024, path)
    if calls:
        if role != "assistant":
            raise bad(f"{path}tool_calls", "belong to the role assistant")
        checked["tool_calls"] = [_call(call, f"{path}tool_calls[{index}]", dropped) for index, call in enumerate(calls)]
    if (function := fields.mapping(message, "function_call", path)) is not None:
        if role != "assistant" or calls:
            raise bad(f"{path}function_call", "belongs to the role assistant, and not beside tool_calls")
        checked["tool_calls"] = [_called(function, f"{path}function_call", None, dropped)]
    if role == "tool":
        identifier = fields.string(message, "tool_call_id", path)
        if not identifier:
            raise bad(f"{path}tool_call_id", "is required for the role tool")
        checked["tool_call_id"] = identifier
    return checked


def _content(message: dict[str, Any], path: str, dropped: list[str], images: Images) -> conversation.Content:
    content, where, role = message.get("content"), f"{path}content", message["role"]
    if content is None:
        if role == "assistant":
            return ""
        raise bad(where, "is required: a string or an array of parts")
    if isinstance(content, str):
        return fields.text(content, where)
    if not isinstance(content, list):
        raise bad(where, "must be a string or an array of parts", content)
    parts: list[str | dict[str, Any]] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        if not isinstance(part, dict):
            raise bad(at, "must be an object", part)
        if part.get("type") != "image_url":
            parts.append(_part(part, at, dropped))
        elif role in _SEEING:
            parts.append(_image(part, at, dropped, images))
        else:
            raise no_place(at, role)
    return conversation.content(parts)


def _image(part: dict[str, Any], where: str, dropped: list[str], images: Images) -> dict[str, Any]:
    given, path = part.get("image_url"), f"{where}.image_url"
    note_strangers(part, f"{where}.", _IMAGE, dropped)
    if isinstance(given, str):  # some clients leave out the object around the address
        return images.of_url(given, path, where)
    if not isinstance(given, dict):
        raise bad(path, "is required: an object with a url")
    check_detail(given, f"{path}.", dropped)
    note_strangers(given, f"{path}.", _ADDRESS, dropped)
    return images.of_url(given.get("url"), f"{path}.url", where)


def _part(part: dict[str, Any], where: str, dropped: list[str]) -> str:
    kind = fields.string(part, "type", f"{where}.")
    if kind == "refusal":
        note_strangers(part, f"{where}.", _REFUSAL, dropped)
        return fields.string(part, "refusal", f"{where}.") or ""
    if kind != "text":
        what = _OTHERS.get(kind or "", f"parts of type {(kind or 'null')[:40]!r}")
        raise NotSupported(f"{where}.type: {what} are not supported: send text and images.", param=f"{where}.type")
    text = fields.string(part, "text", f"{where}.")
    if text is None:
        raise bad(f"{where}.text", "is required")
    note_strangers(part, f"{where}.", _TEXT, dropped)
    return text


def _call(call: object, where: str, dropped: list[str]) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise bad(where, "must be an object", call)
    if fields.string(call, "type", f"{where}.") not in (None, "function"):
        raise bad(f"{where}.type", 'must be "function"', call["type"])
    function = fields.mapping(call, "function", f"{where}.")
    if function is None:
        raise bad(f"{where}.function", "is required")
    note_strangers(call, f"{where}.", _CALL, dropped)
    return _called(function, f"{where}.function", fields.string(call, "id", f"{where}.") or "", dropped)


def _called(function: dict[str, Any], where: str, identifier: str | None, dropped: list[str]) -> dict[str, Any]:
    """A call. `identifier`: None for one in the older form, which had none."""
    note_strangers(function, f"{where}.", _FUNCTION, dropped)
    name = fields.string(function, "name", f"{where}.")
    if not name:
        raise bad(f"{where}.name", "is required")
    arguments = conversation.arguments_of(fields.string(function, "arguments", f"{where}.") or "", f"{where}.arguments")
    return conversation.call(_function_id(name) if identifier is None else identifier, name, arguments)


def _function_result(message: dict[str, Any], path: str, dropped: list[str], images: Images) -> dict[str, Any]:
    """What a call in the older form came to."""
    name = fields.string(message, "name", path)
    if not name:
        raise bad(f"{path}name", "is required for the role function")
    return conversation.result(_function_id(name), _content(message, path, dropped, images)) | {"name": name}


def _function_id(name: str) -> str:
    """In place of the id that calls in the older form do not have."""
    return f"call_{name}"
