"""GET /v1/models and /v1/models/{id}: in Anthropic's shape for whoever sends its version header, else in OpenAI's."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from gateway import errors
from gateway.catalogue import Catalogue
from gateway.dialects import anthropic_errors, anthropic_models, models
from gateway.errors import MEDIA_TYPE, ApiError, InvalidRequest
from gateway.metrics import Metrics

ANTHROPIC = "anthropic-version"


def add(app: FastAPI, catalogue: Catalogue, metrics: Metrics) -> None:
    """Add both routes. What they answer is described with the rest of the API."""

    @app.get("/v1/models", summary="All models", response_class=Response)
    async def list_models(request: Request) -> Response:
        listed = catalogue.listing()
        if ANTHROPIC not in request.headers:
            return Response(models.listing(listed), media_type=MEDIA_TYPE)
        query = request.query_params
        try:
            limit = _limit(query.get("limit", str(anthropic_models.DEFAULT_LIMIT)))
        except ApiError as error:
            return _refused(request, error, metrics)
        page = anthropic_models.listing(
            listed, limit=limit, before=query.get("before_id", ""), after=query.get("after_id", "")
        )
        return Response(page, media_type=MEDIA_TYPE)

    @app.get("/v1/models/{model:path}", summary="One model", response_class=Response)
    async def get_model(model: str, request: Request) -> Response:
        try:
            info = catalogue.info(model)
        except ApiError as error:
            return _refused(request, error, metrics)
        one = anthropic_models.one if ANTHROPIC in request.headers else models.one
        return Response(one(info), media_type=MEDIA_TYPE)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise InvalidRequest(f"limit must be a whole number above 0, and this is {text[:40]!r}.", param="limit")
    return int(text)


def _refused(request: Request, error: ApiError, metrics: Metrics) -> Response:
    metrics.errors.labels(error.kind).inc()
    if ANTHROPIC not in request.headers:
        return errors.answer(error)
    return errors.answer(error, anthropic_errors.to_json(error, f"req_{request.scope['state']['job']}"))
