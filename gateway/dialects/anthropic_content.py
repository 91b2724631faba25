"""The conversation of a messages body, brought to the normal form.

| block | becomes |
|---|---|
| text, search_result, document with text | text of its message |
| tool_use | a call of the assistant message |
| tool_result | a message of its own, in the role tool, at its place |
| thinking | the reasoning of the assistant message; an omitted one is read out of its signature |
| redacted_thinking, and blocks of tools that Anthropic's servers ran | nothing: their text is not for others |
| image, document with anything else | refused |
"""

from typing import Any

from gateway.dialects import conversation, fields, opaque
from gateway.dialects.anthropic_tools import Tools
from gateway.dialects.fields import bad
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


class Conversation:
    """Reads the system prompt and the messages of a body; `messages`, `continues` and `dropped` are the result.

    A list that ends with a message of the assistant is an answer that has begun.
    """

    def __init__(self, body: dict[str, Any], tools: Tools) -> None:
        """Raises InvalidRequest or NotSupported naming the field."""
        self.messages: list[dict[str, Any]] = []
        self.dropped: list[str] = []  # paths of what has no effect
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
        self.dropped += [f"{where}.{key}" for key in message if key not in _MESSAGE and message[key] is not None]
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
        texts: list[str] = []
        num_before = len(self.messages)
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            if _kind(block, at) != "tool_result":
                texts += self._texts(block, at)
                continue
            if texts:
                self.messages.append(conversation.user(conversation.joined(texts)))
                texts = []
            self.messages.append(self._result(block, at))
        if texts or len(self.messages) == num_before:
            self.messages.append(conversation.user(conversation.joined(texts)))

    def _read_assistant(self, blocks: list[Any], where: str) -> None:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            kind = _kind(block, at)
            if kind == "thinking":
                thoughts += _thought(block, at)
            elif kind == "tool_use":
                calls.append(_call(block, at))
            elif kind != "redacted_thinking":
                texts += self._texts(block, at)
        reasoning = "\n\n".join(thoughts) if thoughts else None
        self.messages.append(conversation.assistant(conversation.joined(texts), reasoning, calls))

    def _result(self, block: dict[str, Any], where: str) -> dict[str, Any]:
        identifier = fields.string(block, "tool_use_id", f"{where}.")
        if not identifier:
            raise bad(f"{where}.tool_use_id", "is required")
        content = block.get("content")
        text = "" if content is None else self._text(content, f"{where}.content")
        if fields.boolean(block, "is_error", f"{where}."):
            text = _as_error(text)
        return conversation.result(identifier, text)

    def _text(self, content: object, where: str) -> str:
        """The text of a string or of blocks that hold nothing else."""
        texts: list[str] = []
        for index, block in enumerate(_blocks(content, where)):
            texts += self._texts(block, f"{where}[{index}]")
        return conversation.joined(texts)

    def _texts(self, block: dict[str, Any], where: str) -> list[str]:
        """The text of one block: none for a block that says nothing here."""
        kind = _kind(block, where)
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
            return [_document(block, where)]
        if kind in FOREIGN:
            self.dropped.append(where)
            return []
        raise _refusal(kind, where)


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


def _document(block: dict[str, Any], where: str) -> str:
    source = fields.mapping(block, "source", f"{where}.") or {}
    kind = fields.string(source, "type", f"{where}.source.")
    if kind != "text":
        raise _refusal(f"document with a source of type {kind}", where)
    head = [fields.string(block, key, f"{where}.") for key in ("title", "context")]
    data = fields.string(source, "data", f"{where}.source.")
    return conversation.joined([line for line in [*head, data] if line])


def _as_error(text: str) -> str:
    """The normal form has no flag for a failure, so a text that does not say it says it now."""
    says_so = text.lstrip().lower().startswith(("error", "<tool_use_error>"))
    return text if says_so else f"Error: {text}" if text else "Error"


def _refusal(kind: str, where: str) -> NotSupported:
    what = "images" if kind == "image" else f"blocks of type {kind[:60]!r}"
    return NotSupported(f"{where}: {what} are not supported: this model takes text only.", param=f"{where}.type")
