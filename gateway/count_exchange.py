"""The paths that only count the tokens of a prompt, in each dialect that has one."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import body as bodies
from gateway import errors, sight
from gateway.dialect import Dialect
from gateway.dialects import anthropic_messages, openai_responses
from gateway.exchange import Services, ignored_header
from gateway.request import InferenceRequest

Read = Callable[[Services, dict[str, Any], Mapping[str, str]], Awaitable[InferenceRequest]]


async def _message(services: Services, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    return anthropic_messages.parse_count(body, headers)


async def _response(services: Services, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    return openai_responses.read(body, await services.background.store.past_of(body))


# By path: the dialect of errors, the reader of bodies, what the answer says besides.
COUNTS: dict[str, tuple[Dialect, Read, dict[str, str]]] = {
    "/v1/messages/count_tokens": (anthropic_messages.DIALECT, _message, {}),
    "/v1/responses/input_tokens": (openai_responses.DIALECT, _response, {"object": "response.input_tokens"}),
}


class CountExchange:
    """Answers requests to one of these paths, as an ASGI application."""

    def __init__(self, services: Services, dialect: Dialect, read: Read, shape: Mapping[str, str]) -> None:
        self._services = services
        self._dialect = dialect
        self._read = read
        self._shape = dict(shape)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole exchange."""
        services = self._services
        request: InferenceRequest | None = None
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            bodies.check_headers(headers)
            body, _ = await bodies.read_object(receive, headers, services.max_body_bytes)
            request = await self._read(services, body, headers)
            model = services.catalogue.require(request.model, request.task)
            sight.check(request, model, services.catalogue)
            tokens = await services.counter.count(model, request.prompt)
            response = Response(orjson.dumps(self._shape | {"input_tokens": tokens}), media_type=errors.MEDIA_TYPE)
            response.raw_headers += ignored_header(request)
        except bodies.ClientGone:
            return
        except errors.ApiError as problem:
            error = sight.placed(problem, request)
            services.metrics.errors.labels(error.kind).inc()
            response = errors.answer(error, self._dialect.error_body(error, f"req_{scope['state']['job']}"))
        await response(scope, receive, send)
