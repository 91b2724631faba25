"""Events of a chat completion to OpenAI's bytes: chunk by chunk for a stream, or one whole answer.

Both follow one rule for reasoning: it is `reasoning_content` beside `content`, or, when the client asks for it, part
of the content between <think> and </think>.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway import sse
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened
from shared.messages import Delta, Extra, Timings, TokenLogprob, ToolCall, Usage

FINISHES = ("stop", "length", "tool_calls", "content_filter")


@dataclass(frozen=True, slots=True)
class Notes:
    """What the writers of the answer need to know of the body."""

    is_legacy: bool = False  # calls go out as function_call, of which there is one


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def timings_json(timings: Timings) -> dict[str, float]:
    """Where the time went, in seconds: an extension."""
    return {
        "queue_s": timings.queue_s,
        "load_s": timings.load_s,
        "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s,
    }


def finish_json(finish: str | None) -> str | None:
    """A finish reason that every client knows: some send a request again, for ever, when they meet another one."""
    return finish if finish is None or finish in FINISHES else "stop"


def _is_legacy(request: InferenceRequest) -> bool:
    return isinstance(request.notes, Notes) and request.notes.is_legacy


def _finish(request: InferenceRequest, finish: str | None) -> str | None:
    return "function_call" if finish == "tool_calls" and _is_legacy(request) else finish_json(finish)


def logprobs_json(entries: list[TokenLogprob]) -> dict[str, Any]:
    """Log probabilities in OpenAI's shape."""
    return {"content": [_logprob(one) for one in entries], "refusal": None}


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in entry.top]
    return {**_token(entry.text, entry.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class Stream:
    """The frames of a streamed answer, one for each token."""

    def __init__(self, request: InferenceRequest, identifier: str, created: int) -> None:
        self.has_ended = False
        self._request = request
        self._head = b'data: {"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,' % (
            orjson.dumps(identifier),
            created,
            orjson.dumps(request.model),
        )
        self._tail = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"
        self._is_open = False
        self._is_thinking = [False] * request.sampling.n
        self._prepare("")

    def write(self, event: Event) -> bytes:
        """The bytes of an event."""
        if type(event) is Delta:
            if event.extra is None and event.finish is None and self._is_open and not self._is_thinking[event.choice]:
                # Nearly every token comes this way.
                return self._content[event.choice] + orjson.dumps(event.text) + self._content_end if event.text else b""
            return self._open() + self._delta(event)
        if isinstance(event, Opened):
            self._prepare(event.fingerprint)
            return self._open()
        if isinstance(event, Finished):
            self.has_ended = True
            return self._open() + self._usage(event) + sse.DONE
        if isinstance(event, Broken):
            self.has_ended = True
            return sse.error(event.error)
        return b""

    def _prepare(self, fingerprint: str) -> None:
        self._start = self._head + b'"system_fingerprint":%s,' % (orjson.dumps(fingerprint or None))
        choices = range(self._request.sampling.n)
        self._content = [self._start + b'"choices":[{"index":%d,"delta":{"content":' % index for index in choices]
        self._content_end = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def _open(self) -> bytes:
        if self._is_open:
            return b""
        self._is_open = True
        role = {"role": "assistant", "content": ""}
        return b"".join([self._frame(index, role) for index in range(self._request.sampling.n)])

    def _frame(
        self, choice: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._start + b'"choices":[%s]' % orjson.dumps(entry) + self._tail

    def _delta(self, delta: Delta) -> bytes:
        extra = delta.extra or Extra()
        frames: list[bytes] = []
        content = delta.text
        reasoning = ""
        if self._request.include_thinking:
            content = self._with_thinking(delta, extra)
        else:
            reasoning = extra.reasoning
        logprobs = logprobs_json(extra.logprobs) if extra.logprobs else None
        if reasoning:
            frames.append(self._frame(delta.choice, {"reasoning_content": reasoning}, None, logprobs))
            logprobs = None
        if content or logprobs:
            frames.append(self._frame(delta.choice, {"content": content}, None, logprobs))
        for call in extra.tool_calls:
            frames += self._tool_call(delta.choice, call)
        if delta.finish is not None:
            frames.append(self._frame(delta.choice, {}, _finish(self._request, delta.finish)))
        return b"".join(frames)

    def _with_thinking(self, delta: Delta, extra: Extra) -> str:
        content = ""
        if extra.reasoning:
            content += extra.reasoning if self._is_thinking[delta.choice] else "<think>" + extra.reasoning
            self._is_thinking[delta.choice] = True
        if self._is_thinking[delta.choice] and (delta.text or extra.tool_calls or delta.finish is not None):
            content += "</think>"
            self._is_thinking[delta.choice] = False
        return content + delta.text

    def _tool_call(self, choice: int, call: ToolCall) -> list[bytes]:
        """Id and name first, then the arguments, piece by piece: what every client's assembler expects."""
        parts: list[dict[str, Any]] = []
        if _is_legacy(self._request):
            head = {"name": call.name} if call.id else {}
            return [self._frame(choice, {"function_call": {**head, "arguments": call.arguments}})]
        if call.id:
            function = {"name": call.name, "arguments": ""}
            parts.append({"index": call.index, "id": call.id, "type": "function", "function": function})
        if call.arguments:
            parts.append({"index": call.index, "function": {"arguments": call.arguments}})
        return [self._frame(choice, {"tool_calls": [part]}) for part in parts]

    def _usage(self, event: Finished) -> bytes:
        if not self._request.include_usage:
            return b""
        usage, timings = usage_json(event.usage), timings_json(event.timings)
        return self._start + b'"choices":[],"usage":%s,"timings":%s}\n\n' % (orjson.dumps(usage), orjson.dumps(timings))


def join_calls(calls: dict[int, ToolCall], pieces: list[ToolCall]) -> None:
    """Add pieces of tool calls to the calls they belong to, by index."""
    for piece in pieces:
        call = calls.setdefault(piece.index, ToolCall(piece.index))
        call.id, call.name = call.id or piece.id, call.name or piece.name
        call.arguments += piece.arguments


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, ToolCall] = field(default_factory=dict)  # by index
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None


class Whole:
    """An answer in one piece. Feed it every event up to `Finished`, then take the body."""

    def __init__(self, request: InferenceRequest, identifier: str, created: int) -> None:
        self._request = request
        self._id = identifier
        self._created = created
        self._fingerprint = ""
        self._choices = [_Choice() for _ in range(request.sampling.n)]

    def add(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Opened):
            self._fingerprint = event.fingerprint
        elif isinstance(event, Delta):
            choice = self._choices[event.choice]
            choice.text.append(event.text)
            choice.finish = event.finish
            if event.extra is not None:
                choice.reasoning.append(event.extra.reasoning)
                join_calls(choice.calls, event.extra.tool_calls)
                choice.logprobs += event.extra.logprobs

    def body(self, end: Finished) -> bytes:
        """The whole answer as JSON."""
        return orjson.dumps(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._request.model,
                "system_fingerprint": self._fingerprint or None,
                "choices": [self._choice(index, choice) for index, choice in enumerate(self._choices)],
                "usage": usage_json(end.usage),
                "timings": timings_json(end.timings),
            }
        )

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text, reasoning = "".join(choice.text), "".join(choice.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning and self._request.include_thinking:
            message["content"] = f"<think>{reasoning}</think>{text}"
        elif reasoning:
            message["reasoning_content"] = reasoning
        if choice.calls and _is_legacy(self._request):
            call = choice.calls[min(choice.calls)]
            message["content"] = message["content"] or None
            message["function_call"] = {"name": call.name, "arguments": call.arguments}
        elif choice.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for _, call in sorted(choice.calls.items())
            ]
        logprobs = None if self._request.sampling.logprobs is None else logprobs_json(choice.logprobs)
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _finish(self._request, choice.finish),
        }
