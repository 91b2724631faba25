"""The HTTP surface: which path is served by what, and what every answer bears.

Inference requests take a short way, from the table of dialects to their exchange. The rest goes through FastAPI,
which also describes all of it in /openapi.json.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import errors, model_routes, openapi
from gateway.count_exchange import COUNTS, CountExchange
from gateway.dialect import Dialect
from gateway.dialects import (
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from gateway.exchange import Exchange, Services, request_id
from gateway.health import Health
from gateway.responses import routes as responses_routes
from gateway.responses.exchange import ResponsesExchange
from shared import log as logs
from shared import names

# What takes inference requests, by POST. A new dialect is one more line.
ROUTES: tuple[tuple[str, Dialect], ...] = (
    ("/v1/chat/completions", openai_chat.DIALECT),
    ("/v1/completions", openai_completions.DIALECT),
    ("/v1/embeddings", openai_embeddings.DIALECT),
    ("/v1/messages", anthropic_messages.DIALECT),
    ("/v1/responses", openai_responses.DIALECT),
)
# Where an exchange does more than ask and answer.
EXCHANGES: dict[str, type[Exchange]] = {"/v1/responses": ResponsesExchange}

log = logs.get(__name__)


def build(services: Services, health: Health, version: str) -> ASGIApp:
    """The ASGI application."""
    # FastAPI 0.165 traces every request through OpenTelemetry unless told not to; older ones know no such option.
    options: dict[str, Any] = {"telemetry": dict.fromkeys(("tracing", "metrics", "logs", "operation_spans"), False)}
    app = FastAPI(
        title="Plexus",
        version=version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        **(options if "telemetry" in FastAPI.__init__.__annotations__ else {}),
    )
    app.add_exception_handler(HTTPException, _unserved)
    _add_routes(app, services, health)
    for path, dialect in ROUTES:
        app.post(path, summary=dialect.summary, response_class=Response)(_taken_before)
    for path in COUNTS:
        app.post(path, summary="Count tokens", response_class=Response)(_taken_before)
    responses_routes.add(app, services.background, services.metrics)
    openapi.describe(app.openapi())
    return _Entry(app, services, ROUTES)


def _add_routes(app: FastAPI, services: Services, health: Health) -> None:
    """Everything that is no inference request."""

    model_routes.add(app, services.catalogue, services.metrics)

    @app.get("/health", response_class=Response)
    @app.head("/health", include_in_schema=False)
    async def get_health() -> Response:
        return _json(orjson.dumps(health.report()))

    @app.get("/", response_class=Response)
    @app.head("/", include_in_schema=False)
    @app.get("/api/hello", include_in_schema=False)
    @app.head("/api/hello", include_in_schema=False)  # coding agents ask these before their first request
    async def get_root() -> Response:
        return _json(orjson.dumps({"name": "plexus", "version": app.version, "paths": _paths(app)}))


async def _taken_before() -> Response:
    # FastAPI knows the paths of the table for its document and for requests with another method; a POST never
    # comes so far.
    raise errors.InternalError


def _paths(app: FastAPI) -> list[str]:
    """What there is, such as ``POST /v1/chat/completions``."""
    described = app.openapi()["paths"]
    return [f"{method.upper()} {path}" for path, methods in described.items() for method in methods]


async def _unserved(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    path = request.url.path
    error: errors.ApiError
    if problem.status_code == 405:
        allowed = (problem.headers or {}).get("Allow", "")
        message = f"{path} takes {allowed or 'another method'}, not {request.method}."
        error = errors.MethodNotAllowed(message, headers={"allow": allowed} if allowed else None)
    else:
        served = ", ".join(_paths(request.app))
        error = errors.NotFound(f"There is nothing at {path}; this gateway serves {served}.")
    dialect = next((dialect for own, dialect in ROUTES if path.startswith(own)), None)
    return errors.answer(error, dialect.error_body(error) if dialect else None)


async def _no_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"allow": "POST", "connection": "close"}
    error = errors.MethodNotAllowed("There are no WebSockets here; send the request by POST.", headers=headers)
    await errors.answer(error)(scope, receive, send)


def _json(data: bytes) -> Response:
    return Response(data, media_type=errors.MEDIA_TYPE)


class _Entry:
    """Sees every request first: gives it its id, and turns a crash into an answer."""

    def __init__(self, app: ASGIApp, services: Services, routes: Sequence[tuple[str, Dialect]]) -> None:
        self._app = app
        self._services = services
        self._routes = dict(routes)
        self._counts = {path: CountExchange(services, *count) for path, count in COUNTS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        job = names.new_id()
        # 1. An inference request.
        if scope["method"] == "POST" and (dialect := self._routes.get(scope["path"])) is not None:
            await EXCHANGES.get(scope["path"], Exchange)(self._services, dialect, job)(scope, receive, send)
        elif scope["method"] == "POST" and (count := self._counts.get(scope["path"])) is not None:
            await self._serve(count, job, scope, receive, send)
        # 2. A client that would rather have a WebSocket falls back to POST as soon as it is refused.
        elif (b"upgrade", b"websocket") in scope["headers"]:
            await self._serve(_no_websocket, job, scope, receive, send)
        # 3. Everything else.
        else:
            await self._serve(self._app, job, scope, receive, send)

    async def _serve(self, app: ASGIApp, job: str, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message["headers"], *request_id(job)]
            await send(message)

        scope.setdefault("state", {})["job"] = job
        try:
            await app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("http.crashed", job=job, path=scope["path"])
            if has_started:
                raise
            await errors.answer(errors.InternalError())(scope, receive, send_with_id)
