"""The input of a responses body, brought to the normal form.

| item | becomes |
|---|---|
| message, with or without its type | a message; developer is system |
| reasoning | the reasoning of the assistant message that follows |
| function_call, custom_tool_call, local_shell_call | a call of that assistant message |
| their outputs | a message in the role tool |
| item_reference | the item, from the store |
| calls of tools that OpenAI's servers ran | nothing: they have no text |
| input_image in a message or an output | an image part of that message |
| files and anything else | refused |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.dialects import conversation, fields, opaque
from gateway.dialects.fields import bad
from gateway.dialects.images import Images, check_detail, no_file, no_place
from gateway.dialects.openai_responses_tools import flat_name
from gateway.dialects.parameters import note_strangers
from gateway.errors import NotFound, NotSupported

MAX_ITEMS = 10_000
ROLES = ("system", "developer", "user", "assistant")
_FOREIGN = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_list_tools",
    "mcp_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "tool_search_call",
    "tool_search_output",
)
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_CALL = ("call_id", "name", "namespace")
_KNOWN = {  # of an item, by its type: what has an effect, or is known to need none
    kind: frozenset(("type", "id", "status", *keys))
    for kind, keys in {
        "message": ("role", "content", "phase"),
        "reasoning": ("content", "summary", "encrypted_content"),
        "function_call": (*_CALL, "arguments"),
        "custom_tool_call": (*_CALL, "input"),
        "local_shell_call": ("call_id", "action"),
        **dict.fromkeys(_OUTPUTS, ("call_id", "output")),
    }.items()
}
_REFERENCE, _THOUGHT = frozenset(("type", "id")), frozenset(("type", "text"))
_IMAGE = frozenset(("type", "image_url", "detail", "file_id"))
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_PART = {  # of a part, by the name of its text
    "text": frozenset(("type", "text", "annotations", "logprobs")),
    "refusal": frozenset(("type", "refusal")),
}


@dataclass(frozen=True, slots=True)
class Past:
    """What the store knows for a request."""

    items: list[dict[str, Any]] = field(default_factory=list)  # of the responses before, oldest first
    references: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # item id → item


class Input:
    """Reads items one after another; `messages`, `images` and `dropped` are the result."""

    def __init__(self, past: Past) -> None:
        self.messages: list[dict[str, Any]] = []
        self.items: list[dict[str, Any]] = []  # of this request, references resolved
        self.dropped: list[str] = []  # paths of what has no effect
        self.images = Images()
        self._past = past
        self._is_open = False  # whether the last message is an assistant's that further items may join

    def read(self, body: dict[str, Any]) -> None:
        """The instructions, what was before, and the input. Raises InvalidRequest or NotSupported naming the field."""
        instructions = fields.string(body, "instructions")
        if instructions:
            self.messages.append(conversation.system(instructions))
        for item in self._past.items:
            self._item(item, "previous_response_id")
        self.dropped = []  # of the past: that was told then
        given = body.get("input")
        if isinstance(given, str):
            given = [{"type": "message", "role": "user", "content": fields.text(given, "input")}]
        elif given is not None and not isinstance(given, list):
            raise bad("input", "must be a string or an array of items", given)
        for index, item in enumerate(fields.array({"input": given}, "input", MAX_ITEMS) or []):
            where = f"input[{index}]"
            if not isinstance(item, dict):
                raise bad(where, "must be an object", item)
            item = self._resolved(item, where)
            self.items.append(item)
            self._item(item, where)
        if not self.messages:
            raise bad("input", "is required: a string or a non-empty array of items")
        if all(message["role"] == "system" for message in self.messages) and not self.items:
            raise bad("input", "is required: a string or a non-empty array of items")

    def _resolved(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        identifier = reference_of(item)
        if identifier is None:
            return item
        found = self._past.references.get(identifier)
        if found is None:
            raise NotFound(f"Item with id {identifier[:80]!r} not found.", param=where)
        note_strangers(item, f"{where}.", _REFERENCE, self.dropped)
        return found

    def _item(self, item: dict[str, Any], where: str) -> None:
        path = f"{where}."
        kind = fields.string(item, "type", path) or ("message" if "role" in item else "")
        note_strangers(item, path, _KNOWN.get(kind, item.keys()), self.dropped)
        if kind == "message":
            self._message(item, path)
        elif kind == "reasoning":
            self._reasoning(item, path)
        elif kind in ("function_call", "custom_tool_call", "local_shell_call"):
            self._call(item, kind, path)
        elif kind in _OUTPUTS:
            self._output(item, path)
        elif kind in _FOREIGN:
            self.dropped.append(where)
        else:
            raise NotSupported(f"{path}type {kind[:60]!r} is not supported.", param=f"{path}type")

    def _message(self, item: dict[str, Any], path: str) -> None:
        role = fields.string(item, "role", path)
        if role not in ROLES:
            raise bad(f"{path}role", f"must be one of {', '.join(ROLES)}", role if role is not None else "null")
        if role == "user":
            self._add(conversation.user(self._content(item.get("content"), f"{path}content")))
            return
        text = self._text(item.get("content"), f"{path}content", role)
        if role != "assistant":
            self._add(conversation.system(text))
            return
        message = self._assistant()
        if message["content"] or "tool_calls" in message:
            message = self._new_assistant()
        message["content"] = text

    def _reasoning(self, item: dict[str, Any], path: str) -> None:
        text = self._reasoning_text(item, path)
        if not text:
            return
        message = self._assistant()
        if message["content"] or "tool_calls" in message:
            message = self._new_assistant()
        before = message.get("reasoning_content")
        message["reasoning_content"] = text if before is None else f"{before}\n\n{text}"

    def _call(self, item: dict[str, Any], kind: str, path: str) -> None:
        identifier = fields.string(item, "call_id", path) or fields.string(item, "id", path)
        if not identifier:
            raise bad(f"{path}call_id", "is required")
        arguments: Any
        if kind == "local_shell_call":
            name, arguments = "local_shell", fields.mapping(item, "action", path) or {}
            fields.check_depth(arguments, f"{path}action")
        else:
            name = flat_name(fields.string(item, "name", path) or "", fields.string(item, "namespace", path))
            if not name:
                raise bad(f"{path}name", "is required")
            if kind == "custom_tool_call":
                arguments = {"input": fields.string(item, "input", path) or ""}
            else:
                text = fields.string(item, "arguments", path) or ""
                arguments = conversation.arguments_of(text, f"{path}arguments")
        calls: list[dict[str, Any]] = self._assistant().setdefault("tool_calls", [])
        calls.append(conversation.call(identifier, name, arguments))

    def _output(self, item: dict[str, Any], path: str) -> None:
        identifier = fields.string(item, "call_id", path) or fields.string(item, "id", path)
        if not identifier:
            raise bad(f"{path}call_id", "is required")
        self._add(conversation.result(identifier, self._content(item.get("output"), f"{path}output")))

    def _content(self, content: object, where: str) -> conversation.Content:
        """The content of a user's message or an output: a string, or parts that hold text and images."""
        if not isinstance(content, list):
            return self._text(content, where, "user")
        parts: list[str | dict[str, Any]] = []
        for index, part in enumerate(content):
            at = f"{where}[{index}]"
            is_image = isinstance(part, dict) and part.get("type") == "input_image"
            parts.append(self._image(part, at) if is_image else self._part(part, at, "user"))
        return conversation.content(parts)

    def _image(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        path = f"{where}."
        if part.get("file_id") is not None:
            raise no_file(f"{path}file_id")
        check_detail(part, path, self.dropped)
        note_strangers(part, path, _IMAGE, self.dropped)
        return self.images.of_url(part.get("image_url"), f"{path}image_url", where)

    def _text(self, content: object, where: str, role: str) -> str:
        """The text of a content or an output: a string, or parts that hold nothing but text."""
        if content is None:
            return ""
        if isinstance(content, str):
            return fields.text(content, where)
        if isinstance(content, dict):  # some clients send a result as the object it is
            fields.check_depth(content, where)
            return orjson.dumps(content).decode()
        if not isinstance(content, list):
            raise bad(where, "must be a string or an array of parts", content)
        return conversation.joined(self._part(part, f"{where}[{index}]", role) for index, part in enumerate(content))

    def _part(self, part: object, where: str, role: str) -> str:
        if not isinstance(part, dict):
            raise bad(where, "must be an object", part)
        kind = fields.string(part, "type", f"{where}.")
        if kind == "input_image":
            raise no_place(where, role)
        if kind not in _TEXTS:
            what = {"input_file": "files", "input_audio": "audio"}.get(kind or "")
            what = what or f"parts of type {(kind or str(None))[:60]!r}"
            raise NotSupported(f"{where}: {what} are not supported: send text and images.", param=f"{where}.type")
        key = _TEXTS[kind]
        text = fields.string(part, key, f"{where}.")
        if text is None:
            raise bad(f"{where}.{key}", "is required")
        note_strangers(part, f"{where}.", _PART[key], self.dropped)
        return text

    def _reasoning_text(self, item: dict[str, Any], path: str) -> str:
        """The reasoning in an item: as the model wrote it if the item says it, else as its summary."""
        texts, summary = self._thoughts(item, "content", path), self._thoughts(item, "summary", path)
        kept = fields.string(item, "encrypted_content", path) or ""
        return "".join(texts) or opaque.unwrap(kept) or "\n\n".join(text for text in summary if text)

    def _thoughts(self, item: dict[str, Any], key: str, path: str) -> list[str]:
        texts = []
        for index, part in enumerate(fields.array(item, key, MAX_ITEMS, path) or []):
            where = f"{path}{key}[{index}]"
            if not isinstance(part, dict):
                raise bad(where, "must be an object", part)
            note_strangers(part, f"{where}.", _THOUGHT, self.dropped)
            texts.append(fields.string(part, "text", f"{where}.") or "")
        return texts

    def _add(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._is_open = False

    def _assistant(self) -> dict[str, Any]:
        """The assistant message that the next piece of an answer belongs to."""
        return self.messages[-1] if self._is_open else self._new_assistant()

    def _new_assistant(self) -> dict[str, Any]:
        self._add(conversation.assistant(""))
        self._is_open = True
        return self.messages[-1]


def reference_of(item: object) -> str | None:
    """The id that an item refers to, if it is a reference: with its type, or an id and nothing else."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return None
    is_bare = item.get("type") is None and "role" not in item
    return item["id"] if item.get("type") == "item_reference" or is_bare else None
