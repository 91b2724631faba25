"""A request of the Responses API: an exchange that knows what was before, and keeps what it answers."""

import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Receive, Send

from gateway import body as bodies
from gateway import errors
from gateway.dialect import Dialect, StreamWriter, WholeWriter
from gateway.dialects import openai_responses
from gateway.dialects.openai_responses_answer import Stream, Whole, failed, skeleton
from gateway.exchange import Exchange, Services, ignored_header
from gateway.request import Broken, Finished, InferenceRequest, Opened
from gateway.responses.background import Background
from gateway.responses.store import Stored
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
        created = int(time.time())
        response = skeleton(request, self._identifier, created, "queued")
        await self._background.store.put(self._record(request, response))
        self._background.add(self._identifier, super()._cancel)
        self._is_alone = True
        self._background.tasks.spawn(self._work(request, created), "responses.background")
        data = orjson.dumps(response)
        headers = [(b"content-type", errors.MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(data))]
        await send(self._start([*headers, *ignored_header(request)]))
        await send({"type": "http.response.body", "body": data})

    async def _work(self, request: InferenceRequest, created: int) -> None:
        """The job to its end, without a client. Whatever happens, the stored response becomes final."""
        response = skeleton(request, self._identifier, created, "cancelled")
        error: errors.ApiError | None = None
        try:
            response = await self._result(request, created) or response
        except errors.ApiError as problem:
            error = problem
            response = failed(request, self._identifier, created, problem)
        except Exception:
            log.exception("request.crashed", job=self._job, model=request.model)
            error = errors.InternalError()
            response = failed(request, self._identifier, created, error)
        finally:
            super()._cancel()
            await self._keep(request, response)
            self._background.remove(self._identifier)
            super()._account(request.model, error, time.monotonic() - self._arrived)

    async def _result(self, request: InferenceRequest, created: int) -> dict[str, Any] | None:
        """The response; None when it was cancelled. Raises ApiError."""
        writer = Whole(request, self._identifier, created)
        reader = Reader(self._flights[0])
        while events := await reader.events():
            for event in events:
                if isinstance(event, Broken):
                    raise event.error
                if isinstance(event, Finished):
                    writer.body(event)
                    return writer.response
                if isinstance(event, Opened):
                    await self._keep(request, skeleton(request, self._identifier, created, "in_progress"))
                writer.add(event)
        return None

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

    def _record(self, request: InferenceRequest, response: dict[str, Any]) -> Stored:
        items = [
            item if isinstance(item.get("id"), str) else {"id": f"msg_{self._job}_i{index}", **item}
            for index, item in enumerate(request.notes.items)
        ]
        return Stored(response=response, items=items, past=request.notes.past, gateway=self._background.gateway_id)

    @property
    def _identifier(self) -> str:
        return self._dialect.id_prefix + self._job

    def _cancel(self) -> None:
        if not self._is_alone:
            super()._cancel()

    def _account(self, model: str, error: errors.ApiError | None, duration_s: float) -> None:
        if not self._is_alone:
            super()._account(model, error, duration_s)
