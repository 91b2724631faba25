"""The HTTP surface: which path is served by what, and what every answer bears."""

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import errors
from gateway.dialects import models, openai_chat
from gateway.exchange import Dialect, Exchange, Services
from gateway.health import Health
from shared import log as logs
from shared import names

PATHS = "POST /v1/chat/completions, GET /v1/models, GET /v1/models/{id} and GET /health"

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
    return _Envelope(app)


def _add_routes(app: FastAPI, services: Services, health: Health) -> None:
    chat: Dialect = openai_chat.DIALECT

    @app.post("/v1/chat/completions", response_class=Response)
    async def chat_completions(request: Request) -> Response:
        return Exchange(services, chat, request.scope["state"]["job"])

    @app.get("/v1/models", response_class=Response)
    async def list_models() -> Response:
        return _json(models.listing(services.catalogue.listing()))

    @app.get("/v1/models/{model:path}", response_class=Response)
    async def get_model(model: str) -> Response:
        try:
            return _json(models.one(services.catalogue.info(model)))
        except errors.ApiError as error:
            services.metrics.errors.labels(error.kind).inc()
            return errors.answer(error)

    @app.api_route("/health", methods=["GET", "HEAD"], response_class=Response)
    async def get_health() -> Response:
        return _json(orjson.dumps(health.report()))

    @app.api_route("/", methods=["GET", "HEAD"], response_class=Response)
    async def get_root() -> Response:
        return _json(orjson.dumps({"name": "plexus", "version": app.version, "paths": PATHS}))


async def _unserved(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    if problem.status_code == 405:
        allowed = (problem.headers or {}).get("Allow", "")
        message = f"{request.url.path} takes {allowed or 'another method'}, not {request.method}."
        return errors.answer(errors.MethodNotAllowed(message, headers={"allow": allowed} if allowed else None))
    return errors.answer(errors.NotFound(f"There is nothing at {request.url.path}; this gateway serves {PATHS}."))


def _json(data: bytes) -> Response:
    return Response(data, media_type=errors.MEDIA_TYPE)


class _Envelope:
    """Gives each request its id, which is its job's id too, and turns a crash into an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        job = names.new_id()
        scope.setdefault("state", {})["job"] = job
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = headers["request-id"] = f"req_{job}"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("http.crashed", job=job, path=scope["path"])
            if has_started:
                raise
            await errors.answer(errors.InternalError())(scope, receive, send_with_id)
