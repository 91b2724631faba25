"""One inference request from its first byte to its last: the owner of its job.

Headers are held back until a replica accepts the job or it fails, so that a bad prompt is a true 4xx; but only for a
while, so that a client which waits in a queue sees a stream with signs of life. A stream always ends with its
dialect's last event or with an error event. Whatever happens, the job ends with the request.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import body as bodies
from gateway import errors, sse
from gateway.catalogue import Catalogue
from gateway.demand import Demand
from gateway.dispatch import Dispatcher
from gateway.flight import Flight
from gateway.metrics import Metrics
from gateway.request import Broken, Event, Finished, InferenceRequest, Waiting
from gateway.streams import Reader
from shared import log as logs

IGNORED_HEADER = "x-plexus-ignored"
MAX_IGNORED = 20
_PLAIN = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_CLIENT_GONE = 499  # in the log only: nobody is there to be answered

log = logs.get(__name__)


class StreamWriter(Protocol):
    """What a dialect makes of the events of a stream."""

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
    """A wire format of inference requests."""

    id_prefix: str

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """The request a body means. Raises ApiError."""

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> StreamWriter:
        """A writer for a stream."""

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> WholeWriter:
        """A writer for an answer in one piece."""


@dataclass(frozen=True, slots=True)
class Services:
    """What an exchange works with."""

    dispatcher: Dispatcher
    catalogue: Catalogue
    metrics: Metrics
    demand: Demand
    max_body_bytes: int
    accept_wait_s: float


def describe(flight: Flight, catalogue: Catalogue) -> Waiting:
    """What a waiting client is told of its job."""
    if flight.replica:
        return Waiting("running" if flight.first_token else flight.phase or "accepted")
    state = catalogue.state(flight.model)
    return Waiting("queued" if state == "ready" else state, flight.ahead)


class Exchange(Response):
    """Answers one request; the ASGI application of a route of one dialect."""

    def __init__(self, services: Services, dialect: Dialect, job_id: str) -> None:
        super().__init__()
        self._services = services
        self._dialect = dialect
        self._job = job_id
        self._status = 0  # what the client was sent
        self._flight: Flight | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole exchange."""
        arrived = time.monotonic()
        model = ""
        error: errors.ApiError | None = None
        try:
            request = await self._read(Headers(scope=scope), receive)
            model = request.model
            self._services.catalogue.require(model)
            self._flight = self._services.dispatcher.submit(request, self._job)
            if self._services.catalogue.state(model) == "cold":
                self._services.demand.ask(model)
            await self._serve(request, self._flight, receive, send)
        except bodies.ClientGone:
            pass
        except errors.ApiError as problem:
            error = problem
        except Exception:
            log.exception("request.crashed", job=self._job, model=model)
            error = errors.InternalError()
        finally:
            if self._flight is not None:
                self._services.dispatcher.cancel(self._flight)
        if error is not None and self._status:
            await send({"type": "http.response.body", "body": sse.error(error)})
        elif error is not None:
            self._status = error.status
            await errors.answer(error)(scope, receive, send)
        self._account(model, error, time.monotonic() - arrived)

    async def _read(self, headers: Headers, receive: Receive) -> InferenceRequest:
        bodies.check_headers(headers)
        raw = await bodies.read(receive, headers, self._services.max_body_bytes)
        return self._dialect.parse(bodies.decode(raw), headers)

    async def _serve(self, request: InferenceRequest, flight: Flight, receive: Receive, send: Send) -> None:
        reader = Reader(flight)
        watch = asyncio.create_task(self._watch(flight, receive))
        try:
            if request.stream:
                await self._stream(request, reader, send)
            else:
                await self._whole(request, reader, send)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _watch(self, flight: Flight, receive: Receive) -> None:
        """A client that goes away ends its job."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._services.dispatcher.cancel(flight)

    async def _stream(self, request: InferenceRequest, reader: Reader, send: Send) -> None:
        writer = self._dialect.stream(request, self._dialect.id_prefix + self._job, int(time.time()))
        assert self._flight is not None
        try:
            async with asyncio.timeout(self._services.accept_wait_s):
                events = await reader.events()
        except TimeoutError:
            events = [describe(self._flight, self._services.catalogue)]
        if events and isinstance(events[0], Broken):
            raise events[0].error
        if not events:
            return
        self._status = 200
        headers = {"content-type": sse.MEDIA_TYPE, **sse.HEADERS, **_ignored(request)}
        await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
        while events:
            data = b"".join([writer.write(event) for event in events])
            if data or writer.has_ended:
                await send({"type": "http.response.body", "body": data, "more_body": not writer.has_ended})
            if writer.has_ended:
                return
            events = await reader.events()

    async def _whole(self, request: InferenceRequest, reader: Reader, send: Send) -> None:
        writer = self._dialect.whole(request, self._dialect.id_prefix + self._job, int(time.time()))
        while events := await reader.events():
            for event in events:
                if isinstance(event, Broken):
                    raise event.error
                if isinstance(event, Finished):
                    data = writer.body(event)
                    headers = {
                        "content-type": errors.MEDIA_TYPE,
                        "content-length": str(len(data)),
                        **_ignored(request),
                    }
                    self._status = 200
                    await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
                    await send({"type": "http.response.body", "body": data})
                    return
                writer.add(event)

    def _account(self, model: str, error: errors.ApiError | None, duration_s: float) -> None:
        """One line and one set of counts for each outcome, whichever way it came."""
        flight = self._flight
        error = error or (flight.error if flight else None)
        if flight is not None:
            self._services.metrics.finished(flight)
        if error is not None:
            self._services.metrics.errors.labels(error.kind).inc()
        outcome = error.kind if error else ("ok" if flight and flight.state == "done" else "cancelled")
        fields: dict[str, Any] = {
            "job": self._job,
            "model": model,
            "worker": flight.worker if flight else "",
            "status": self._status or _CLIENT_GONE,
            "outcome": outcome,
        }
        if flight is not None:
            usage = flight.usage
            fields |= {
                "prompt_tokens": usage.prompt_tokens if usage else flight.prompt_tokens,
                "completion_tokens": flight.num_tokens,
                "ttft": round(flight.first_token - flight.started, 4) if flight.first_token else None,
                "attempts": flight.attempt,
            }
        if error is not None:
            fields["error"] = error.message
        log.info("request", **fields, duration=round(duration_s, 4))


def _ignored(request: InferenceRequest) -> dict[str, str]:
    if not request.ignored:
        return {}
    shown = [_PLAIN.sub("?", name)[:64] for name in request.ignored[:MAX_IGNORED]]
    more = len(request.ignored) - len(shown)
    return {IGNORED_HEADER: ", ".join([*shown, f"+{more}"] if more else shown)}


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
