"""What can be asked of stored responses: fetch, delete, cancel, list the input."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from gateway import errors
from gateway.metrics import Metrics
from gateway.responses.background import Background
from gateway.responses.store import FINAL, Stored

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


def add(app: FastAPI, background: Background, metrics: Metrics) -> None:
    """Add the routes."""
    store = background.store

    async def answer(work: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
        try:
            return Response(orjson.dumps(await work()), media_type=errors.MEDIA_TYPE)
        except errors.ApiError as error:
            metrics.errors.labels(error.kind).inc()
            return errors.answer(error)

    @app.get("/v1/responses/{response_id}", response_class=Response)
    async def get_response(request: Request, response_id: str) -> Response:
        async def work() -> dict[str, Any]:
            if request.query_params.get("stream", "").lower() in ("1", "true"):
                raise errors.NotSupported(
                    "stream is not supported here: fetch the response until its status is final.", param="stream"
                )
            return (await background.current(await store.require(response_id))).response

        return await answer(work)

    @app.delete("/v1/responses/{response_id}", response_class=Response)
    async def delete_response(response_id: str) -> Response:
        async def work() -> dict[str, Any]:
            record = await store.require(response_id)
            if record.response["status"] not in FINAL:
                await background.cancel(record)
            await store.delete(response_id)
            return {"id": response_id, "object": "response", "deleted": True}

        return await answer(work)

    @app.post("/v1/responses/{response_id}/cancel", response_class=Response)
    async def cancel_response(response_id: str) -> Response:
        async def work() -> dict[str, Any]:
            record = await store.require(response_id)
            if not record.response.get("background"):
                raise errors.InvalidRequest(
                    "Only a response with background: true can be cancelled; hang up to cancel another.",
                    param="response_id",
                )
            return (await background.cancel(record)).response

        return await answer(work)

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

        return await answer(work)


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
    return item
