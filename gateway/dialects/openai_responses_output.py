"""The output items of a response as they come to be, and the events that tell of it.

An answer is a row of items: reasoning, a message, calls. One is open at a time, and is done before the next begins.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.dialects import opaque
from gateway.dialects.openai_responses_tools import Named
from shared.messages import Delta, Extra, TokenLogprob, ToolCall

Kind = Literal["reasoning", "message", "function_call", "custom_tool_call"]
Step = tuple[str, dict[str, Any]]  # the type of an event without its prefix, and its fields

_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}
_INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Form:
    """What a client wants to see of an answer."""

    named: Mapping[str, Named] = field(default_factory=dict)  # tools by the name that the model sees
    is_summary: bool = False  # reasoning as a summary, which is all that some clients show
    is_encrypted: bool = False  # with encrypted content
    has_logprobs: bool = False


@dataclass(slots=True)
class _Item:
    kind: Kind
    id: str
    index: int
    parts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    call: ToolCall | None = None  # its first piece
    named: Named | None = None


class Output:
    """The items so far. Every method yields the events that it makes."""

    def __init__(self, form: Form, job: str) -> None:
        self.items: list[dict[str, Any]] = []  # done
        self.finish = "stop"
        self._form = form
        self._job = job
        self._open: _Item | None = None

    def text_place(self) -> tuple[str, int] | None:
        """(item id, output index) of the message that is open, if one is."""
        item = self._open
        return (item.id, item.index) if item is not None and item.kind == "message" else None

    def add_text(self, text: str) -> None:
        """Text for the open message, of which its caller tells the client."""
        assert self._open is not None
        self._open.parts.append(text)

    def take(self, delta: Delta) -> Iterator[Step]:
        """Take in a delta."""
        extra = delta.extra or Extra()
        if extra.reasoning:
            yield from self._begin("reasoning")
            yield from self._reason(extra.reasoning)
        logprobs = [_logprob(one) for one in extra.logprobs] if self._form.has_logprobs and not extra.reasoning else []
        if delta.text or (logprobs and not extra.tool_calls):
            yield from self._begin("message")
            yield from self._say(delta.text, logprobs)
        for call in extra.tool_calls:
            yield from self._call(call)
        self.finish = delta.finish or self.finish

    def close(self, *, is_whole: bool = True) -> Iterator[Step]:
        """End the item that is open."""
        if (item := self._open) is None:
            return
        self._open = None
        text = "".join(item.parts)
        value = self._value(item, text, "completed" if is_whole else _INCOMPLETE)
        place = {"item_id": item.id, "output_index": item.index}
        if item.kind == "message":
            part = value["content"][0]
            yield "output_text.done", {**place, "content_index": 0, "text": text, "logprobs": item.logprobs}
            yield "content_part.done", {**place, "content_index": 0, "part": part}
        elif item.kind == "reasoning" and self._form.is_summary:
            yield "reasoning_summary_text.done", {**place, "summary_index": 0, "text": text}
            yield "reasoning_summary_part.done", {**place, "summary_index": 0, "part": value["summary"][0]}
        elif item.kind == "reasoning":
            yield "reasoning_text.done", {**place, "content_index": 0, "text": text}
            yield "content_part.done", {**place, "content_index": 0, "part": value["content"][0]}
        elif item.kind == "function_call":
            yield "function_call_arguments.done", {**place, "name": value["name"], "arguments": text}
        else:
            if value["input"]:
                yield "custom_tool_call_input.delta", {**place, "delta": value["input"]}
            yield "custom_tool_call_input.done", {**place, "input": value["input"]}
        self.items.append(value)
        yield "output_item.done", {"output_index": item.index, "item": value}

    def _begin(self, kind: Kind, call: ToolCall | None = None) -> Iterator[Step]:
        if self._open is not None:
            if self._open.kind == kind and call is None:
                return
            yield from self.close()
        index = len(self.items)
        item = _Item(kind, f"{_PREFIXES[kind]}_{self._job}_{index}", index, call=call)
        if call is not None:
            item.named = self._form.named.get(call.name) or Named("function", call.name)
        self._open = item
        yield "output_item.added", {"output_index": index, "item": self._value(item, "", "in_progress")}
        place = {"item_id": item.id, "output_index": index}
        if kind == "message":
            yield "content_part.added", {**place, "content_index": 0, "part": _text_part("", [])}
        elif kind == "reasoning" and self._form.is_summary:
            part = {"type": "summary_text", "text": ""}
            yield "reasoning_summary_part.added", {**place, "summary_index": 0, "part": part}
        elif kind == "reasoning":
            yield "content_part.added", {**place, "content_index": 0, "part": {"type": "reasoning_text", "text": ""}}

    def _reason(self, text: str) -> Iterator[Step]:
        assert self._open is not None
        self._open.parts.append(text)
        place = {"item_id": self._open.id, "output_index": self._open.index, "delta": text}
        if self._form.is_summary:
            yield "reasoning_summary_text.delta", {**place, "summary_index": 0}
        else:
            yield "reasoning_text.delta", {**place, "content_index": 0}

    def _say(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Step]:
        assert self._open is not None
        self._open.parts.append(text)
        self._open.logprobs += logprobs
        place = {"item_id": self._open.id, "output_index": self._open.index, "content_index": 0}
        yield "output_text.delta", {**place, "delta": text, "logprobs": logprobs}

    def _call(self, call: ToolCall) -> Iterator[Step]:
        item = self._open
        if item is None or item.call is None or item.call.index != call.index:
            known = self._form.named.get(call.name)
            is_custom = known is not None and known.kind == "custom"
            yield from self._begin("custom_tool_call" if is_custom else "function_call", call)
            item = self._open
        assert item is not None
        if not call.arguments:
            return
        item.parts.append(call.arguments)
        if item.kind == "function_call":  # the text of a custom tool is known when its JSON is whole
            place = {"item_id": item.id, "output_index": item.index}
            yield "function_call_arguments.delta", {**place, "delta": call.arguments}

    def _value(self, item: _Item, text: str, status: str) -> dict[str, Any]:
        """The item as the client sees it, at its beginning (without text) or at its end."""
        is_new = status == "in_progress"
        head: dict[str, Any] = {"id": item.id, "type": item.kind, "status": status}
        if item.kind == "message":
            content = [] if is_new else [_text_part(text, item.logprobs)]
            return {**head, "role": "assistant", "content": content}
        if item.kind == "reasoning":
            value = {**head, "summary": [], "encrypted_content": None}
            if not is_new and self._form.is_summary:
                value["summary"] = [{"type": "summary_text", "text": text}]
            elif not is_new:
                value["content"] = [{"type": "reasoning_text", "text": text}]
            if not is_new and self._form.is_encrypted:
                value["encrypted_content"] = opaque.wrap(text)
            return value
        assert item.call is not None and item.named is not None
        value = {**head, "call_id": item.call.id, "name": item.named.name}
        if item.named.namespace is not None:
            value["namespace"] = item.named.namespace
        if item.kind == "function_call":
            return {**value, "arguments": text}
        return {**value, "input": "" if is_new else _freeform(text)}


def _text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _freeform(arguments: str) -> str:
    """The text inside a call of a custom tool; of a call that was cut, whatever there is."""
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments if value else ""


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in entry.top]
    return {**_token(entry.text, entry.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
