"""The conversation of a messages body, brought to the normal form.

| block | becomes |
|---|---|
| text, search_result, document with text | text of its message |
| tool_use | a call of the assistant message |
| tool_result | a message of its own, in the role tool, at its place |
| thinking | the reasoning of the assistant message; an omitted one is read out of its signature |
| redacted_thinking, and blocks of tools that Anthropic's servers ran | nothing: their text is not for others |
| image | an image part of its user message or tool result |
| document with anything else | refused |
"""

from typing import Any

from gateway.dialects import conversation, fields, opaque
from gateway.dialects.anthropic_tools import Tools
from gateway.dialects.fields import bad
from gateway.dialects.images import Images, no_file, no_place
from gateway.dialects.parameters import note_strangers
from gateway.errors import NotSupported

MAX_MESSAGES = 10_000
MAX_BLOCKS = 10_000
ROLES = ("user", "assistant", "system")
_BILLING = "x-anthropic-billing-header:"  # a line for Anthropic's own books, before a coding agent's system prompt
FOREIGN = (
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "container_upload",
)
_MESSAGE = frozenset(("role", "content"))
_KNOWN = {  # of a block, by its type: what has an effect, or is known to need none
    kind: frozenset(("type", "cache_control", *keys))
    for kind, keys in {
        "text": ("text", "citations"),
        "image": ("source",),
        "thinking": ("thinking", "signature"),
        "redacted_thinking": ("data",),
        "tool_use": ("id", "name", "input", "caller"),
        "tool_result": ("tool_use_id", "content", "is_error"),
        "tool_reference": ("tool_name",),
        "search_result": ("title", "source", "content"),
        "document": ("title", "context", "source"),
    }.items()
}
_OF_ASSISTANT = ("thinking", "redacted_thinking", "tool_use")
_SOURCE, _ADDRESS = frozenset(("type", "media_type", "data")), frozenset(("type", "url"))


class Conversation:
    """Reads the system prompt and the messages of a body; `messages`, `images`, `continues` and `dropped` result.

    A list that ends with a message of the assistant is an answer that has begun.
    """

    def __init__(self, body: dict[str, Any], tools: Tools) -> None:
        """Raises InvalidRequest or NotSupported naming the field."""
        self.messages: list[dict[str, Any]] = []
        self.dropped: list[str] = []  # paths of what has no effect
        self.images = Images()
        self._tools = tools
        self._read_system(body.get("system"))
        given = fields.array(body, "messages", MAX_MESSAGES)
        if not given:
            raise bad("messages", "is required: a non-empty array")
        for index, message in enumerate(given):
            self._read_message(message, f"messages[{index}]")
        self.continues = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        if self.continues and not conversation.can_continue(self.messages):
            raise bad(
                f"messages[{len(given) - 1}]",
                "must have text, and no tool_use, to be continued; or send what follows it, as a user message",
            )

    def _read_system(self, value: object) -> None:
        if value is None:
            return
        if isinstance(value, list) and value and _is_billing(value[0]):
            self.dropped.append("system[0]")
            value = value[1:]
        if text := self._text(value, "system"):
            self.messages.append(conversation.system(text))

    def _read_message(self, message: object, where: str) -> None:
        if not isinstance(message, dict):
            raise bad(where, "must be an object", message)
        role = fields.string(message, "role", f"{where}.")
        if role not in ROLES:
            raise bad(f"{where}.role", f"must be one of {', '.join(ROLES)}", role if role is not None else "null")
        note_strangers(message, f"{where}.", _MESSAGE, self.dropped)
        content, path = message.get("content"), f"{where}.content"
        if content is None:
            raise bad(path, "is required: a string or an array of blocks")
        if role == "system":
            self.messages.append(conversation.system(self._text(content, path)))
        elif role == "user":
            self._read_user(_blocks(content, path), path)
        else:
            self._read_assistant(_blocks(content, path), path)

    def _read_user(self, blocks: list[Any], where: str) -> None:
        parts: list[str | dict[str, Any]] = []
        num_before = len(self.messages)
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            if _kind(block, at) != "tool_result":
                parts += self._parts(block, at)
                continue
            if parts:
                self.messages.append(conversation.user(conversation.content(parts)))
                parts = []
            self.messages.append(self._result(block, at))
        if parts or len(self.messages) == num_before:
            self.messages.append(conversation.user(conversation.content(parts)))

    def _read_assistant(self, blocks: list[Any], where: str) -> None:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            kind = _kind(block, at)
            if kind in _OF_ASSISTANT:
                self._note(block, kind, at)
            if kind == "thinking":
                thoughts += _thought(block, at)
            elif kind == "tool_use":
                calls.append(_call(block, at))
            elif kind == "image":
                raise no_place(at, "assistant")
            elif kind != "redacted_thinking":
                texts += self._texts(block, at)
        reasoning = "\n\n".join(thoughts) if thoughts else None
        self.messages.append(conversation.assistant(conversation.joined(texts), reasoning, calls))

    def _result(self, block: dict[str, Any], where: str) -> dict[str, Any]:
        self._note(block, "tool_result", where)
        identifier = fields.string(block, "tool_use_id", f"{where}.")
        if not identifier:
            raise bad(f"{where}.tool_use_id", "is required")
        path = f"{where}.content"
        given = block.get("content")
        parts: list[str | dict[str, Any]] = []
        for index, inner in enumerate([] if given is None else _blocks(given, path)):
            parts += self._parts(inner, f"{path}[{index}]")
        content = conversation.content(parts)
        if fields.boolean(block, "is_error", f"{where}."):
            content = _as_error(content)
        return conversation.result(identifier, content)

    def _parts(self, block: object, where: str) -> list[str | dict[str, Any]]:
        """The text of one block, or its image."""
        if _kind(block, where) == "image":
            assert isinstance(block, dict)
            return [self._image(block, where)]
        return [*self._texts(block, where)]

    def _image(self, block: dict[str, Any], where: str) -> dict[str, Any]:
        path = f"{where}.source"
        source = fields.mapping(block, "source", f"{where}.")
        if source is None:
            raise bad(path, "is required: an object with type base64, media_type and data")
        kind = fields.string(source, "type", f"{path}.")
        self._note(block, "image", where)
        if kind == "base64":
            note_strangers(source, f"{path}.", _SOURCE, self.dropped)
            return self.images.of_data(
                source.get("data"), source.get("media_type"), f"{path}.data", f"{path}.media_type", where
            )
        if kind == "url":
            note_strangers(source, f"{path}.", _ADDRESS, self.dropped)
            return self.images.of_url(source.get("url"), f"{path}.url", where)
        if kind == "file":
            raise no_file(path)
        raise bad(f"{path}.type", 'must be "base64"', kind)

    def _text(self, content: object, where: str) -> str:
        """The text of a string or of blocks that hold nothing else."""
        texts: list[str] = []
        for index, block in enumerate(_blocks(content, where)):
            texts += self._texts(block, f"{where}[{index}]")
        return conversation.joined(texts)

    def _texts(self, block: Any, where: str) -> list[str]:
        """The text of one block: none for a block that says nothing here."""
        kind = _kind(block, where)
        if kind == "image":
            raise no_place(where, "system")
        if kind in FOREIGN:
            self.dropped.append(where)
            return []
        self._note(block, kind, where)
        if kind == "text":
            text = fields.string(block, "text", f"{where}.")
            if text is None:
                raise bad(f"{where}.text", "is required")
            return [text]
        if kind == "tool_reference":
            name = fields.string(block, "tool_name", f"{where}.")
            if not name:
                raise bad(f"{where}.tool_name", "is required")
            return [self._tools.show(name)]
        if kind == "search_result":
            head = [fields.string(block, key, f"{where}.") for key in ("title", "source")]
            body = self._text(block.get("content") or [], f"{where}.content")
            return [conversation.joined([line for line in [*head, body] if line])]
        if kind == "document":
            return [self._document(block, where)]
        raise _refusal(kind, where)

    def _document(self, block: dict[str, Any], where: str) -> str:
        path = f"{where}.source."
        source = fields.mapping(block, "source", f"{where}.") or {}
        kind = fields.string(source, "type", path)
        if kind != "text":
            raise _refusal(f"document with a source of type {kind}", where)
        note_strangers(source, path, _SOURCE, self.dropped)
        head = [fields.string(block, key, f"{where}.") for key in ("title", "context")]
        data = fields.string(source, "data", path)
        return conversation.joined([line for line in [*head, data] if line])

    def _note(self, block: dict[str, Any], kind: str, where: str) -> None:
        if (known := _KNOWN.get(kind)) is not None:
            note_strangers(block, f"{where}.", known, self.dropped)


def _blocks(content: object, where: str) -> list[Any]:
    """Content as a list of blocks, each an object."""
    if isinstance(content, str):
        return [{"type": "text", "text": fields.text(content, where)}]
    if not isinstance(content, list):
        raise bad(where, "must be a string or an array of blocks", content)
    if len(content) > MAX_BLOCKS:
        raise bad(where, f"must have at most {MAX_BLOCKS} blocks, and this has {len(content)}")
    return content


def _kind(block: object, where: str) -> str:
    if not isinstance(block, dict):
        raise bad(where, "must be an object", block)
    kind = fields.string(block, "type", f"{where}.")
    if kind is None:
        raise bad(f"{where}.type", "is required")
    return kind


def _is_billing(block: object) -> bool:
    return isinstance(block, dict) and str(block.get("text", "")).startswith(_BILLING)


def _thought(block: dict[str, Any], where: str) -> list[str]:
    """The reasoning in a thinking block; its signature goes no further."""
    text = fields.string(block, "thinking", f"{where}.") or ""
    signature = fields.string(block, "signature", f"{where}.") or ""
    text = text or opaque.unwrap(signature) or ""
    return [text] if text else []


def _call(block: dict[str, Any], where: str) -> dict[str, Any]:
    path = f"{where}."
    name = fields.string(block, "name", path)
    if not name:
        raise bad(f"{path}name", "is required")
    identifier = fields.string(block, "id", path)
    if not identifier:
        raise bad(f"{path}id", "is required")
    arguments = fields.mapping(block, "input", path)
    if arguments is None:
        raise bad(f"{path}input", "is required: an object")
    fields.check_depth(arguments, f"{path}input")
    return conversation.call(identifier, name, arguments)


def _as_error(content: conversation.Content) -> conversation.Content:
    """The normal form has no flag for a failure, so a text that does not say it says it now."""
    if isinstance(content, list):
        first = content[0]["text"] if content[0]["type"] == "text" else None
        rest = content if first is None else content[1:]
        text = _as_error(first or "")
        return [{"type": "text", "text": text}, *rest]
    text = content
    says_so = text.lstrip().lower().startswith(("error", "<tool_use_error>"))
    return text if says_so else f"Error: {text}" if text else "Error"


def _refusal(kind: str, where: str) -> NotSupported:
    what = f"blocks of type {kind[:60]!r}"
    return NotSupported(f"{where}: {what} are not supported: send text and images.", param=f"{where}.type")
