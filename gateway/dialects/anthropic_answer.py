"""Events of an answer to Anthropic's bytes: event by event for a stream, or one whole message.

A message is a row of blocks: thinking, text, tool_use. A stream opens one block at a time and closes it before the
next; a block of thinking ends with its signature.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway import sse
from gateway.dialects import anthropic_errors, opaque
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened, Waiting
from shared.messages import Delta, Extra, Timings, ToolCall, Usage

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def ping(waiting: Waiting) -> bytes:
    """A sign of life: a comment that people can read, and the event that clients know."""
    return sse.comment(waiting) + _PING


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage in Anthropic's shape: tokens read from the cache are no input tokens, but stand beside them."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def timings_json(timings: Timings) -> dict[str, float]:
    """Where the time went, in seconds: an extension."""
    return {
        "queue_s": timings.queue_s,
        "load_s": timings.load_s,
        "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s,
    }


def _message(request: InferenceRequest, identifier: str, usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "service_tier": "standard"},
    }


def _signature(text: str, *, is_omitted: bool) -> str:
    return opaque.wrap(text) if is_omitted else opaque.mark(text)


@dataclass(slots=True)
class _End:
    """How the answer ended."""

    finish: str = "stop"
    stopped: str | None = None  # the stop sequence that was met

    def take(self, delta: Delta) -> None:
        self.finish = delta.finish or self.finish
        if delta.extra is not None and delta.extra.stopped is not None:
            self.stopped = delta.extra.stopped

    def fields(self) -> dict[str, Any]:
        if self.stopped is not None and self.finish == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": self.stopped}
        return {"stop_reason": _STOP_REASONS.get(self.finish, "end_turn"), "stop_sequence": None}


class Stream:
    """The events of a streamed message."""

    def __init__(self, request: InferenceRequest, identifier: str, *, is_thinking_omitted: bool = False) -> None:
        self.has_ended = False
        self._request = request
        self._id = identifier
        self._is_thinking_omitted = is_thinking_omitted
        self._is_open = False
        self._index = -1  # of the block that is open, or was last
        self._block: Literal["", "thinking", "text", "tool_use"] = ""
        self._call = -1  # index of the tool call in the open block
        self._thought: list[str] = []  # of the open block of thinking
        self._text_head = b""
        self._end = _End()

    def write(self, event: Event) -> bytes:
        """The bytes of an event."""
        if type(event) is Delta:
            if event.extra is None and event.finish is None and self._block == "text":
                # Nearly every token comes this way.
                return self._text_head + orjson.dumps(event.text) + b"}}\n\n" if event.text else b""
            return self._open(0) + self._delta(event)
        if isinstance(event, Opened):
            return self._open(event.prompt_tokens)
        if isinstance(event, Waiting):
            return ping(event)
        if isinstance(event, Finished):
            self.has_ended = True
            return self._open(event.usage.prompt_tokens) + self._close() + self._finish(event)
        if isinstance(event, Broken):
            self.has_ended = True
            return anthropic_errors.event(event.error, "req_" + self._id.removeprefix("msg_"))
        return b""

    def _open(self, prompt_tokens: int) -> bytes:
        if self._is_open:
            return b""
        self._is_open = True
        usage = usage_json(Usage(prompt_tokens))
        return _event("message_start", {"message": _message(self._request, self._id, usage)})

    def _delta(self, delta: Delta) -> bytes:
        frames: list[bytes] = []
        extra = delta.extra or Extra()
        if extra.reasoning:
            frames.append(self._think(extra.reasoning))
        if delta.text:
            if self._block != "text":
                frames.append(self._begin("text", {"type": "text", "text": ""}))
            frames.append(self._text_head + orjson.dumps(delta.text) + b"}}\n\n")
        frames += [self._tool(call) for call in extra.tool_calls]
        self._end.take(delta)
        return b"".join(frames)

    def _think(self, text: str) -> bytes:
        data = b""
        if self._block != "thinking":
            data = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        self._thought.append(text)
        if self._is_thinking_omitted:
            return data
        return data + self._piece({"type": "thinking_delta", "thinking": text})

    def _tool(self, call: ToolCall) -> bytes:
        data = b""
        if self._block != "tool_use" or self._call != call.index:
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            data = self._begin("tool_use", block)
            self._call = call.index
        return (
            data + self._piece({"type": "input_json_delta", "partial_json": call.arguments}) if call.arguments else data
        )

    def _begin(self, kind: Literal["thinking", "text", "tool_use"], block: dict[str, Any]) -> bytes:
        data = self._close()
        self._block = kind
        self._index += 1
        if kind == "text":
            self._text_head = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                b'"delta":{"type":"text_delta","text":' % self._index
            )
        return data + _event("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> bytes:
        if not self._block:
            return b""
        data = b""
        if self._block == "thinking":
            signature = _signature("".join(self._thought), is_omitted=self._is_thinking_omitted)
            data = self._piece({"type": "signature_delta", "signature": signature})
            self._thought = []
        self._block = ""
        return data + _event("content_block_stop", {"index": self._index})

    def _piece(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _finish(self, event: Finished) -> bytes:
        value = {"delta": self._end.fields(), "usage": usage_json(event.usage), "timings": timings_json(event.timings)}
        return _event("message_delta", value) + _event("message_stop", {})


@dataclass(slots=True)
class _Block:
    kind: str
    parts: list[str] = field(default_factory=list)
    call: ToolCall | None = None  # its first piece


class Whole:
    """A message in one piece. Feed it every event up to `Finished`, then take the body."""

    def __init__(self, request: InferenceRequest, identifier: str, *, is_thinking_omitted: bool = False) -> None:
        self._request = request
        self._id = identifier
        self._is_thinking_omitted = is_thinking_omitted
        self._blocks: list[_Block] = []
        self._end = _End()

    def add(self, event: Event) -> None:
        """Take in an event."""
        if not isinstance(event, Delta):
            return
        extra = event.extra or Extra()
        if extra.reasoning:
            self._block("thinking").parts.append(extra.reasoning)
        if event.text:
            self._block("text").parts.append(event.text)
        for call in extra.tool_calls:
            self._block("tool_use", call).parts.append(call.arguments)
        self._end.take(event)

    def body(self, end: Finished) -> bytes:
        """The whole message as JSON."""
        message = _message(self._request, self._id, usage_json(end.usage)) | self._end.fields()
        message["content"] = [self._content(block) for block in self._blocks]
        message["timings"] = timings_json(end.timings)
        return orjson.dumps(message)

    def _block(self, kind: str, call: ToolCall | None = None) -> _Block:
        last = self._blocks[-1] if self._blocks else None
        if (
            last is not None
            and last.kind == kind
            and (call is None or last.call is None or last.call.index == call.index)
        ):
            return last
        self._blocks.append(_Block(kind, call=call))
        return self._blocks[-1]

    def _content(self, block: _Block) -> dict[str, Any]:
        text = "".join(block.parts)
        if block.kind == "text":
            return {"type": "text", "text": text}
        if block.kind == "thinking":
            signature = _signature(text, is_omitted=self._is_thinking_omitted)
            return {"type": "thinking", "thinking": "" if self._is_thinking_omitted else text, "signature": signature}
        assert block.call is not None
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": _input(text)}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object. A call that the token limit cut is no JSON: what there is of it is kept."""
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return {"_incomplete": arguments}
    return value if isinstance(value, dict) else {"_value": value}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
