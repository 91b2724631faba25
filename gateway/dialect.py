"""What a wire format of inference requests is: a reader of bodies, writers of answers, and an envelope for errors."""

from collections.abc import Mapping
from typing import Any, Protocol

from gateway import errors, sse
from gateway.request import Event, Finished, InferenceRequest, Waiting


class StreamWriter(Protocol):
    """What a dialect makes of the events of a stream. `Waiting` goes to `Dialect.keepalive` instead."""

    has_ended: bool

    def write(self, event: Event) -> bytes:
        """The bytes of an event."""


class WholeWriter(Protocol):
    """What a dialect makes of the events of an answer in one piece."""

    def add(self, event: Event) -> None:
        """Take in an event."""

    def body(self, end: Finished) -> bytes:
        """The answer."""


class Dialect(Protocol):
    """One wire format. Inherit from it: errors and signs of life are OpenAI's unless a dialect says otherwise."""

    id_prefix: str
    summary: str  # one line, for the OpenAPI document

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """The request a body means. Raises ApiError."""

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> StreamWriter:
        """A writer for a stream."""

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> WholeWriter:
        """A writer for an answer in one piece."""

    def error_body(self, error: errors.ApiError, request_id: str = "") -> bytes:
        """The body of an error answer, as JSON."""
        return errors.to_json(error)

    def error_event(self, error: errors.ApiError, request_id: str = "") -> bytes:
        """The event that ends a stream whose writer cannot: the gateway itself failed."""
        return sse.error(error)

    def keepalive(self, waiting: Waiting, writer: StreamWriter | None = None) -> bytes:
        """A sign of life in a stream that has nothing to say. Some formats number it among the writer's events."""
        return sse.comment(waiting)
