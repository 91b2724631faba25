"""What can be asked of stored responses: fetch, delete, cancel, list the input."""

from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import errors, sse
from gateway.exchange import ignored_names
from gateway.metrics import Metrics
from gateway.responses.background import Background
from gateway.responses.follow import follow, send_stream
from gateway.responses.store import Stored

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_OF_RESPONSES = frozenset(("stream", "starting_after"))  # names of a query that have an effect
_OF_ITEMS = frozenset(("limit", "order", "after"))


def add(app: FastAPI, background: Background, metrics: Metrics) -> None:
    """Add the routes."""
    store = background.store

    def refused(error: errors.ApiError) -> Response:
        metrics.errors.labels(error.kind).inc()
        return errors.answer(error)

    async def answer(
        request: Request, work: Callable[[], Awaitable[dict[str, Any]]], known: Set[str] = frozenset()
    ) -> Response:
        try:
            response = Response(orjson.dumps(await work()), media_type=errors.MEDIA_TYPE)
        except errors.ApiError as error:
            return refused(error)
        response.raw_headers += ignored_names([name for name in request.query_params if name not in known])
        return response

    @app.get("/v1/responses/{response_id}", response_class=Response)
    async def get_response(request: Request, response_id: str) -> Response:
        try:
            after = starting_after(request.query_params)
            record = await background.current(await store.require(response_id))
            ignored = ignored_names([name for name in request.query_params if name not in _OF_RESPONSES])
            if after is None:
                whole = Response(orjson.dumps(record.response), media_type=errors.MEDIA_TYPE)
                whole.raw_headers += ignored
                return whole
            if not record.has_events:
                raise errors.NotSupported(
                    "stream: the events of this response were not kept; only those created with background: true and "
                    "stream: true are. Fetch it without stream.",
                    param="stream",
                )
        except errors.ApiError as error:
            return refused(error)
        return _Events(background, record, after, ignored)

    @app.delete("/v1/responses/{response_id}", response_class=Response)
    async def delete_response(request: Request, response_id: str) -> Response:
        async def work() -> dict[str, Any]:
            await background.delete(await store.require(response_id))
            return {"id": response_id, "object": "response", "deleted": True}

        return await answer(request, work)

    @app.post("/v1/responses/{response_id}/cancel", response_class=Response)
    async def cancel_response(request: Request, response_id: str) -> Response:
        async def work() -> dict[str, Any]:
            record = await store.require(response_id)
            if not record.response.get("background"):
                raise errors.InvalidRequest(
                    "Only a response with background: true can be cancelled; hang up to cancel another.",
                    param="response_id",
                )
            return (await background.cancel(record)).response

        return await answer(request, work)

    @app.get("/v1/responses/{response_id}/input_items", response_class=Response)
    async def list_input_items(request: Request, response_id: str) -> Response:
        async def work() -> dict[str, Any]:
            query = request.query_params
            return page(
                await store.require(response_id),
                limit=query.get("limit", ""),
                order=query.get("order", "desc"),
                after=query.get("after", ""),
            )

        return await answer(request, work, _OF_ITEMS)


class _Events(Response):
    """A response's events from a number on."""

    def __init__(self, background: Background, record: Stored, after: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self._start = [*sse.HEADERS, *headers]
        self._background = background
        self._record = record
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self._start}
        await send_stream(follow(self._background, self._record, self._after), start, receive, send)


def starting_after(query: Mapping[str, str]) -> int | None:
    """The number after which events are wanted, -1 for all; None when no stream is. Raises InvalidRequest."""
    stream = query.get("stream", "").lower()
    if stream not in ("", "0", "1", "false", "true"):
        raise errors.InvalidRequest("stream must be true or false.", param="stream")
    number = query.get("starting_after", "")
    if number and not (number.isascii() and number.isdecimal() and len(number) < 16):
        raise errors.InvalidRequest("starting_after must be the sequence_number of an event.", param="starting_after")
    if stream in ("1", "true"):
        return int(number) if number else -1
    if number:
        raise errors.InvalidRequest("starting_after needs stream=true.", param="starting_after")
    return None


def page(record: Stored, *, limit: str, order: str, after: str) -> dict[str, Any]:
    """One page of the input of a response, what was before it included. Raises InvalidRequest."""
    if limit and not (limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise errors.InvalidRequest(f"limit must be a number from 1 to {MAX_LIMIT}.", param="limit")
    if order not in ("asc", "desc"):
        raise errors.InvalidRequest('order must be "asc" or "desc".', param="order")
    items = [_item(item) for item in (*record.past, *record.items)]
    if order == "desc":
        items.reverse()
    ids = [item.get("id") for item in items]
    if after:
        if after not in ids:
            raise errors.InvalidRequest(f"after: there is no item {after[:80]!r} in this response.", param="after")
        items = items[ids.index(after) + 1 :]
    size = int(limit) if limit else DEFAULT_LIMIT
    shown = items[:size]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0].get("id") if shown else None,
        "last_id": shown[-1].get("id") if shown else None,
        "has_more": len(items) > size,
    }


def _item(item: dict[str, Any]) -> dict[str, Any]:
    """An item in its long form: clients may leave out the type of a message, and send a text for its parts."""
    if item.get("type", "message") != "message":
        return item
    item = {"type": "message", "status": "completed", **item}
    if isinstance(item.get("content"), str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        item["content"] = [{"type": kind, "text": item["content"]}]
    elif isinstance(item.get("content"), list):
        item["content"] = [_part(part) for part in item["content"]]
    return item


def _part(part: Any) -> Any:
    is_image = isinstance(part, dict) and part.get("type") == "input_image"
    return {"detail": "auto", **part} if is_image else part
