"""GET /v1/models and /v1/models/{id} in Anthropic's shape, chosen by the header ``anthropic-version``."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.catalogue import ModelInfo

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000


def listing(models: Sequence[ModelInfo], *, limit: int = DEFAULT_LIMIT, before: str = "", after: str = "") -> bytes:
    """One page of all models. `after` and `before` are ids: the page follows or precedes that model."""
    page = list(models)
    ids = [model.id for model in page]
    if after in ids:
        page = page[ids.index(after) + 1 :]
    limit = max(1, min(limit, MAX_LIMIT))
    if before in ids:
        page = page[: ids.index(before)]
        has_more, page = len(page) > limit, page[-limit:]
    else:
        has_more, page = len(page) > limit, page[:limit]
    return orjson.dumps(
        {
            "data": [entry(model) for model in page],
            "has_more": has_more,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


def one(model: ModelInfo) -> bytes:
    """One model."""
    return orjson.dumps(entry(model))


def entry(model: ModelInfo) -> dict[str, Any]:
    """A model, with its state in the fleet and what tools like to know of it as extensions."""
    value: dict[str, Any] = {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(model.created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "state": model.state,
    }
    if model.capabilities:
        value["features"] = model.capabilities
        value["capabilities"] = _capabilities(model.capabilities)
    if model.cost:
        value["cost"] = model.cost
    if model.context_limit:
        value |= {"max_input_tokens": model.context_limit, "max_tokens": model.context_limit}
    return value


def _capabilities(known: Mapping[str, bool]) -> dict[str, Any]:
    """In Anthropic's words, which leave none out: what nobody here can do is not supported."""
    reasons, no = _support(known.get("reasoning", False)), _support(False)
    kinds = {"adaptive": reasons, "enabled": reasons, "disabled": _support(True), "between_tools": no}
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": {**reasons, **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), reasons)},
        "image_input": _support(known.get("vision", False)),
        "pdf_input": no,
        "server_tools": {**no, "code_execution": no, "web_search": no},
        "structured_outputs": _support(True),
        "thinking": {**reasons, "types": kinds},
    }


def _support(is_there: bool) -> dict[str, Any]:
    return {"supported": is_there}
