"""A request of the Responses API: an exchange that knows what was before, and keeps what it answers."""

import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Receive, Send

from gateway import body as bodies
from gateway import errors, sse
from gateway.dialect import Dialect, StreamWriter, WholeWriter
from gateway.dialects import openai_responses
from gateway.dialects.openai_responses_answer import Stream, Whole
from gateway.exchange import Exchange, Services, ignored_header
from gateway.request import InferenceRequest
from gateway.responses.background import Background
from gateway.responses.follow import follow, send_stream
from gateway.responses.recorder import Recorder
from gateway.responses.store import Owned, Stored
from gateway.responses.work import Work
from gateway.streams import Reader
from shared import log as logs

log = logs.get(__name__)


class ResponsesExchange(Exchange):
    """Answers one request; in the background it answers first and works on."""

    def __init__(self, services: Services, dialect: Dialect, job_id: str) -> None:
        super().__init__(services, dialect, job_id)
        self._background: Background = services.background
        self._arrived = time.monotonic()
        self._is_alone = False  # the client has its answer, and the job goes on

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> InferenceRequest:
        bodies.check_headers(headers)
        body, num_bytes = await bodies.read_object(receive, headers, self._services.max_body_bytes)
        past = await self._background.store.past_of(body)
        request = openai_responses.read(body, past)
        if request.notes.is_stored:
            self._background.store.check_room(num_bytes + (len(orjson.dumps(past.items)) if past.items else 0))
        return request

    async def _serve(self, request: InferenceRequest, receive: Receive, send: Send) -> None:
        if not request.notes.is_background:
            await super()._serve(request, receive, send)
            return
        background, created = self._background, int(time.time())
        record = self._record(request, {"id": self._identifier}, has_events=request.stream)
        recorder = Recorder(background.events, self._identifier) if request.stream else None
        work = Work(request, self._identifier, created, Owned(background.store, record), recorder)
        background.add(self._identifier, super()._cancel)
        try:
            await work.begin()
        except BaseException:
            background.remove(self._identifier)
            raise
        response = record.response
        self._is_alone = True
        background.tasks.spawn(self._work(request, work), "responses.background")
        if recorder is not None:
            background.tasks.spawn(recorder.run(), "responses.recorder")
            headers = [*sse.HEADERS, *ignored_header(request)]
            await send_stream(follow(background, record), self._start(headers), receive, send)
            return
        data = orjson.dumps(response)
        headers = [(b"content-type", errors.MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(data))]
        await send(self._start([*headers, *ignored_header(request)]))
        await send({"type": "http.response.body", "body": data})

    async def _work(self, request: InferenceRequest, work: Work) -> None:
        """The job to its end, without a client."""
        error: errors.ApiError | None = None
        try:
            error = await work.run(Reader(self._flights[0]), super()._cancel, self._timed)
        finally:
            self._background.remove(self._identifier)
            super()._account(request.model, error, time.monotonic() - self._arrived)

    async def _settle(self, request: InferenceRequest, writer: StreamWriter | WholeWriter) -> None:
        """A follower may come as soon as the client has the end: it must find this response."""
        if request.notes.is_stored and isinstance(writer, (Stream, Whole)) and writer.response is not None:
            await self._keep(request, writer.response)

    async def _keep(self, request: InferenceRequest, response: dict[str, Any]) -> None:
        """Store a response. When that fails the client still gets its answer, and the log says what is missing."""
        try:
            await self._background.store.put(self._record(request, response))
        except errors.ApiError as error:
            log.warning("response.not_stored", job=self._job, model=request.model, error=error.message)

    def _record(self, request: InferenceRequest, response: dict[str, Any], *, has_events: bool = False) -> Stored:
        items = [
            item if isinstance(item.get("id"), str) else {"id": f"msg_{self._job}_i{index}", **item}
            for index, item in enumerate(request.notes.items)
        ]
        notes, gateway = request.notes, self._background.gateway_id
        return Stored(response=response, items=items, past=notes.past, gateway=gateway, has_events=has_events)

    @property
    def _identifier(self) -> str:
        return self._dialect.id_prefix + self._job

    def _cancel(self) -> None:
        if not self._is_alone:
            super()._cancel()

    def _account(self, model: str, error: errors.ApiError | None, duration_s: float) -> None:
        if not self._is_alone:
            super()._account(model, error, duration_s)
