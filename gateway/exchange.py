"""One inference request from its first byte to its last: the owner of its job.

Headers are held back until a replica accepts the job or it fails, so that a bad prompt is a true 4xx; but only for a
while, so that a client which waits in a queue sees a stream with signs of life. A stream always ends with its
dialect's last event or with an error event. Whatever happens, the job ends with the request.
"""

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from msgspec import structs
from starlette.types import Message, Receive, Scope, Send

from gateway import body as bodies
from gateway import errors, sight, sse, waiting
from gateway.catalogue import Catalogue
from gateway.counting import Counter
from gateway.demand import Demand
from gateway.dialect import Dialect, StreamWriter, WholeWriter
from gateway.dispatch import Dispatcher
from gateway.flight import Flight
from gateway.merged import Merged
from gateway.metrics import Metrics
from gateway.request import Broken, Event, Finished, InferenceRequest, Waiting
from gateway.responses.background import Background
from gateway.share import share_of
from gateway.streams import Reader
from shared import log as logs
from shared import names

IGNORED_HEADER = b"x-plexus-ignored"
MAX_IGNORED = 32  # names in the header that tells them, the rest is counted
MAX_NAME = 64  # characters of one
MAX_LOOKED = 10_000  # names that are looked at, whatever a body holds
_PLAIN = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_INDEX = re.compile(r"\[\d+\]")
_JSON = (b"content-type", errors.MEDIA_TYPE.encode())
_CLIENT_GONE = 499  # in the log only: nobody is there to be answered

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """What an exchange works with."""

    dispatcher: Dispatcher
    catalogue: Catalogue
    metrics: Metrics
    demand: Demand
    max_body_bytes: int
    accept_wait_s: float
    counter: Counter
    background: Background
    waits: waiting.Waits


def request_id(job_id: str) -> list[tuple[bytes, bytes]]:
    """The headers by which a client and the log name one request."""
    value = b"req_" + job_id.encode()
    return [(b"x-request-id", value), (b"request-id", value)]


class Exchange:
    """Answers one request in one dialect, as an ASGI application. The job's id is the request's id too."""

    def __init__(self, services: Services, dialect: Dialect, job_id: str) -> None:
        self._services = services
        self._dialect = dialect
        self._job = job_id
        self._status = 0  # what the client was sent
        self._flights: list[Flight] = []  # one, unless the request has further prompts
        self._request: InferenceRequest | None = None  # once it is read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole exchange."""
        arrived = time.monotonic()
        model = ""
        error: errors.ApiError | None = None
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            request = self._request = await self._read(headers, receive)
            model = request.model
            record = self._services.catalogue.require(model, request.task)
            if request.images:
                sight.check(request, record, self._services.catalogue)
            self._submit(request, record.id, share_of(headers))
            if self._services.catalogue.state(record.id) not in ("ready", "loading"):
                self._services.demand.ask(record.id)
            await self._serve(request, receive, send)
        except bodies.ClientGone:
            pass
        except errors.ApiError as problem:
            error = sight.placed(problem, self._request)
        except Exception:
            log.exception("request.crashed", job=self._job, model=model)
            error = errors.InternalError()
        finally:
            self._cancel()
        if error is not None and self._status:
            await send({"type": "http.response.body", "body": self._dialect.error_event(error, f"req_{self._job}")})
        elif error is not None:
            self._status = error.status
            await self._refuse(error, scope, receive, send)
        account = functools.partial(self._account, model, error, time.monotonic() - arrived)
        self._services.dispatcher.afterwards(account)

    async def _refuse(self, error: errors.ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        response = errors.answer(error, self._dialect.error_body(error, f"req_{self._job}"))
        response.raw_headers += request_id(self._job)
        await response(scope, receive, send)

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> InferenceRequest:
        bodies.check_headers(headers)
        body, _ = await bodies.read_object(receive, headers, self._services.max_body_bytes)
        return self._dialect.parse(body, headers)

    def _submit(self, request: InferenceRequest, model: str, share: str) -> None:
        submit = self._services.dispatcher.submit
        self._flights.append(submit(request, self._job, model, share))
        for prompt in request.further:
            self._flights.append(submit(structs.replace(request, prompt=prompt), names.new_id(), model, share))

    def _cancel(self) -> None:
        for flight in reversed(self._flights):  # so that none gets the turn of one before it
            self._services.dispatcher.cancel(flight)

    async def _serve(self, request: InferenceRequest, receive: Receive, send: Send) -> None:
        flights = self._flights
        reader = Reader(flights[0]) if len(flights) == 1 else Merged(flights, request.sampling.n)
        watch = asyncio.create_task(self._watch(receive))
        try:
            if request.stream:
                await self._stream(request, reader, send)
            else:
                await self._whole(request, reader, send)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _watch(self, receive: Receive) -> None:
        """A client that goes away ends its job. One that goes when it has its last event ends nothing."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel()

    async def _stream(self, request: InferenceRequest, reader: Reader | Merged, send: Send) -> None:
        writer = self._dialect.stream(request, self._dialect.id_prefix + self._job, int(time.time()))
        patience = asyncio.get_running_loop().call_later(self._services.accept_wait_s, self._sign_of_life)
        try:
            events = await reader.events()
        finally:
            patience.cancel()
        if broken := next((event for event in events if isinstance(event, Broken)), None):
            raise broken.error
        if not events:
            return
        await send(self._start([*sse.HEADERS, *waiting.headers(events), *ignored_header(request)]))
        while events:
            data = self._written(writer, events)
            if writer.has_ended:
                await self._settle(request, writer)
            if data or writer.has_ended:
                await send({"type": "http.response.body", "body": data, "more_body": not writer.has_ended})
            if writer.has_ended:
                return
            events = await reader.events()

    def _sign_of_life(self) -> None:
        """Accepted or not, the client shall see that its request lives."""
        flight = self._flights[0]
        flight.keep_alive(self._services.waits.of(flight), self._services.dispatcher.clock())

    def _written(self, writer: StreamWriter, events: list[Event]) -> bytes:
        keepalive = self._dialect.keepalive
        if type(events[-1]) is Finished:
            events[-1] = self._timed(events[-1])
        elif type(events[-1]) is Broken:
            events[-1] = Broken(sight.placed(events[-1].error, self._request))
        return b"".join([keepalive(one, writer) if type(one) is Waiting else writer.write(one) for one in events])

    def _timed(self, end: Finished) -> Finished:
        flight, catalogue = self._flights[0], self._services.catalogue
        return waiting.with_load(end, flight, catalogue, self._services.dispatcher.clock() - flight.started)

    def _start(self, headers: list[tuple[bytes, bytes]]) -> Message:
        self._status = 200
        return {"type": "http.response.start", "status": 200, "headers": [*headers, *request_id(self._job)]}

    async def _whole(self, request: InferenceRequest, reader: Reader | Merged, send: Send) -> None:
        writer = self._dialect.whole(request, self._dialect.id_prefix + self._job, int(time.time()))
        while events := await reader.events():
            for event in events:
                if isinstance(event, Broken):
                    raise event.error
                if isinstance(event, Finished):
                    data = writer.body(self._timed(event))
                    await self._settle(request, writer)
                    length = b"%d" % len(data)
                    await send(self._start([_JSON, (b"content-length", length), *ignored_header(request)]))
                    await send({"type": "http.response.body", "body": data})
                    return
                writer.add(event)

    async def _settle(self, request: InferenceRequest, writer: StreamWriter | WholeWriter) -> None:
        """What must be done before the client has the end of its answer: nothing here."""

    def _account(self, model: str, error: errors.ApiError | None, duration_s: float) -> None:
        """One line and one set of counts for each outcome, whichever way it came."""
        flights = self._flights
        error = error or next((flight.error for flight in flights if flight.error), None)
        for flight in flights:
            self._services.metrics.finished(flight)
        if error is not None:
            self._services.metrics.errors.labels(error.kind).inc()
        is_done = bool(flights) and all(flight.state == "done" for flight in flights)
        fields: dict[str, Any] = {
            "job": self._job,
            "model": model,
            "worker": flights[0].worker if flights else "",
            "status": self._status or _CLIENT_GONE,
            "outcome": error.kind if error else ("ok" if is_done else "cancelled"),
        }
        if flights:
            first_token = min((flight.first_token for flight in flights if flight.first_token), default=0.0)
            fields |= {
                "prompt_tokens": sum(one.usage.prompt_tokens if one.usage else one.prompt_tokens for one in flights),
                "completion_tokens": sum(flight.num_tokens for flight in flights),
                "ttft": round(first_token - flights[0].started, 4) if first_token else None,
                "attempts": max(flight.attempt for flight in flights),
            }
        if error is not None:
            fields["error"] = error.message
        log.info("request", **fields, duration=round(duration_s, 4))


def ignored_header(request: InferenceRequest) -> list[tuple[bytes, bytes]]:
    """The header that names the parameters of a body which have no effect, if there are any."""
    return ignored_names(request.ignored)


def ignored_names(names: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """The header for these names."""
    if not names:
        return []
    told: Iterable[str] = names
    if len(names) > MAX_IGNORED:  # of what repeats along a list, one is told
        kinds: dict[str, str] = {}
        for name in names[:MAX_LOOKED]:
            kinds.setdefault(_INDEX.sub("", name[:MAX_NAME]), name)
        told = kinds.values()
    shown = [_PLAIN.sub("?", name[:MAX_NAME]) for name in islice(told, MAX_IGNORED)]
    more = len(names) - len(shown)
    return [(IGNORED_HEADER, ", ".join([*shown, f"+{more}"] if more else shown).encode())]
