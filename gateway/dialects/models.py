"""GET /v1/models and /v1/models/{id} in OpenAI's shape, with the state of each model as extension fields."""

from typing import Any

import orjson

from gateway.catalogue import ModelInfo


def listing(models: list[ModelInfo]) -> bytes:
    """The list of all models."""
    return orjson.dumps({"object": "list", "data": [_entry(model) for model in models]})


def one(model: ModelInfo) -> bytes:
    """One model."""
    return orjson.dumps(_entry(model))


def _entry(model: ModelInfo) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": int(model.created_s),
        "owned_by": "plexus",
        "state": model.state,
        "workers": model.workers,
    }
    if model.context_limit:
        entry |= {"context_limit": model.context_limit, "max_model_len": model.context_limit}
    if model.state == "loading":
        entry["loading"] = {"stage": model.stage, "done_bytes": model.done_bytes, "total_bytes": model.total_bytes}
    if model.state == "failed":
        entry["reason"] = model.reason
    return entry
