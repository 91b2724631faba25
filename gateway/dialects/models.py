"""GET /v1/models and /v1/models/{id} in OpenAI's shape, with what tools look for as extension fields.

Tools know the context limit by several names: ``max_model_len`` is vLLM's, ``context_length`` OpenRouter's and LM
Studio's. ``state`` is ready, loading, draining, failed, cold (the next request loads it) or cannot_fit.
"""

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
    is_embedder = model.task == "embed"
    sees = model.capabilities.get("vision", False)
    entry: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": int(model.created_s),
        "owned_by": "plexus",
        "type": "embeddings" if is_embedder else "llm",
        "state": model.state,
        "workers": model.workers,
        "modalities": {
            "input": ["text", "image"] if sees else ["text"],
            "output": ["embedding"] if is_embedder else ["text"],
        },
    }
    if model.alias_of:
        entry["alias_of"] = model.alias_of
    if model.aliases:
        entry["aliases"] = model.aliases
    if model.description:
        entry["description"] = model.description
    if model.context_limit:
        entry |= dict.fromkeys(("context_limit", "max_model_len", "context_length"), model.context_limit)
    if model.capabilities:
        entry["capabilities"] = model.capabilities
    if model.cost:
        entry["cost"] = model.cost
    if model.state == "loading":
        entry["loading"] = {"stage": model.stage, "done_bytes": model.done_bytes, "total_bytes": model.total_bytes}
    if model.state in ("failed", "cannot_fit"):
        entry["reason"] = model.reason
    return entry
