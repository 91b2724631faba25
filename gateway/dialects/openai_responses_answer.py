"""Events of an answer to the Responses API's bytes: numbered events for a stream, or one whole response."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway import sse
from gateway.dialects.openai_chat_answer import timings_json
from gateway.dialects.openai_responses_output import Form, Output, Step
from gateway.errors import ApiError, ContextLengthExceeded
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened, Waiting
from shared.messages import Delta, Usage


@dataclass(frozen=True, slots=True)
class Notes:
    """What the writers, and the store, need to know of the body."""

    form: Form = field(default_factory=Form)
    echo: dict[str, Any] = field(default_factory=dict)  # fields of the request that the response repeats
    items: list[dict[str, Any]] = field(default_factory=list)  # the input of this request
    past: list[dict[str, Any]] = field(default_factory=list)  # what was before it
    is_stored: bool = False
    is_background: bool = False


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage in the shape of the Responses API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def error_json(error: ApiError) -> dict[str, Any]:
    """The error of a failed response. Its code tells clients whether to try again."""
    if isinstance(error, ContextLengthExceeded):
        code = "context_length_exceeded"
    elif error.status == 429:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if error.status < 500 else "server_error"
    return {"code": code, "message": error.message}


def skeleton(request: InferenceRequest, identifier: str, created: int, status: str) -> dict[str, Any]:
    """A response without output."""
    return {
        "id": identifier,
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": request.model,
        "output": [],
        "usage": None,
        **request.notes.echo,
    }


def failed(request: InferenceRequest, identifier: str, created: int, error: ApiError) -> dict[str, Any]:
    """A response that came to nothing."""
    return skeleton(request, identifier, created, "failed") | {"error": error_json(error)}


class Stream:
    """The events of a streamed response."""

    def __init__(self, request: InferenceRequest, identifier: str, created: int) -> None:
        self.has_ended = False
        self.response: dict[str, Any] | None = None  # once it has ended
        self._request = request
        self._id = identifier
        self._created = created
        self._number = 0  # of the next event
        self._is_queued = False
        self._output = Output(request.notes.form, identifier.removeprefix("resp_"))
        self._place: tuple[str, int] | None = None  # that the text head was made for
        self._text_head = self._text_middle = b""

    @property
    def number(self) -> int:
        """The sequence number of the next event."""
        return self._number

    def queue(self) -> bytes:
        """The first events of a response that is answered before it begins."""
        self._is_queued = True
        snapshot = {"response": skeleton(self._request, self._id, self._created, "queued")}
        return self._event("created", snapshot) + self._event("queued", snapshot)

    def cancel(self) -> bytes:
        """The last events of a response that was cancelled: as one that stays incomplete, for there is no other."""
        data = self._events(list(self._output.close(is_whole=False)))
        response = skeleton(self._request, self._id, self._created, "cancelled") | {"output": self._output.items}
        return data + self._end(response)

    def write(self, event: Event) -> bytes:
        """The bytes of an event."""
        if type(event) is Delta:
            if event.extra is None and event.finish is None and self._place is not None:
                return self._text(event.text)  # nearly every token comes this way
            return self._open() + self._delta(event)
        if isinstance(event, Opened):
            return self._open()
        if isinstance(event, Waiting):
            return sse.comment(event) + (self._event("in_progress", self._snapshot()) if self._number else self._open())
        if isinstance(event, Finished):
            return self._open() + self._finish(event)
        if isinstance(event, Broken):
            return self._open() + self._fail(event.error)
        return b""

    def _open(self) -> bytes:
        if self._is_queued:
            self._is_queued = False
            return self._event("in_progress", self._snapshot())
        if self._number:
            return b""
        return self._event("created", self._snapshot()) + self._event("in_progress", self._snapshot())

    def _snapshot(self) -> dict[str, Any]:
        return {"response": skeleton(self._request, self._id, self._created, "in_progress")}

    def _delta(self, delta: Delta) -> bytes:
        data = self._events(list(self._output.take(delta)))
        place = self._output.text_place()
        if place != self._place:
            self._place = place
            if place is not None:
                self._text_head = (
                    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":%s,'
                    b'"output_index":%d,"content_index":0,"logprobs":[],"sequence_number":'
                    % (orjson.dumps(place[0]), place[1])
                )
        return data

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        self._output.add_text(text)
        number, self._number = self._number, self._number + 1
        return self._text_head + b"%d" % number + b',"delta":' + orjson.dumps(text) + b"}\n\n"

    def _finish(self, event: Finished) -> bytes:
        data = self._events(list(self._output.close(is_whole=self._output.finish != "length")))
        response = _ended(self._request, self._id, self._created, self._output, event)
        return data + self._end(response)

    def _fail(self, error: ApiError) -> bytes:
        data = self._events(list(self._output.close(is_whole=False)))
        response = failed(self._request, self._id, self._created, error) | {"output": self._output.items}
        return data + self._end(response)

    def _end(self, response: dict[str, Any]) -> bytes:
        self.has_ended = True
        self.response = response
        return ending(response, self._take_number())

    def _events(self, steps: list[Step]) -> bytes:
        return b"".join([self._event(kind, fields) for kind, fields in steps])

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        return event_bytes(f"response.{kind}", {"sequence_number": self._take_number(), **fields})

    def _take_number(self) -> int:
        number, self._number = self._number, self._number + 1
        return number


class Whole:
    """A response in one piece. Feed it every event up to `Finished`, then take the body."""

    def __init__(self, request: InferenceRequest, identifier: str, created: int) -> None:
        self.response: dict[str, Any] | None = None  # once it has ended
        self._request = request
        self._id = identifier
        self._created = created
        self._output = Output(request.notes.form, identifier.removeprefix("resp_"))

    def add(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Delta):
            for _ in self._output.take(event):
                pass

    def body(self, end: Finished) -> bytes:
        """The whole response as JSON."""
        for _ in self._output.close(is_whole=self._output.finish != "length"):
            pass
        self.response = _ended(self._request, self._id, self._created, self._output, end)
        return orjson.dumps(self.response)


def ending(response: dict[str, Any], number: int) -> bytes:
    """The last event of a stream, of a response that is final."""
    kind = {"cancelled": "incomplete"}.get(response["status"], response["status"])
    return event_bytes(f"response.{kind}", {"sequence_number": number, "response": response})


def event_bytes(kind: str, fields: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _ended(request: InferenceRequest, identifier: str, created: int, output: Output, event: Finished) -> dict[str, Any]:
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(output.finish)
    response = skeleton(request, identifier, created, "incomplete" if reason else "completed")
    response["incomplete_details"] = {"reason": reason} if reason else None
    response["output"] = output.items
    response["usage"] = usage_json(event.usage)
    response["timings"] = timings_json(event.timings)
    return response
