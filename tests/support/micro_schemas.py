"""What `nats micro` demands of an answer, as JSON schemas: io.nats.micro.v1.{ping,info,stats}_response."""

from typing import Any

import jsonschema

_NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]+$"}
_VERSION = {  # semantic versioning, as its specification gives it
    "type": "string",
    "pattern": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
    r"(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$",
}
_METADATA = {"type": "object", "additionalProperties": {"type": "string"}}
_SUBJECT = {"type": "string", "pattern": r"^[^ >]*[>]?$", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}


def _response(kind: str, more: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "name", "id", "version", "metadata", *required],
        "additionalProperties": False,
        "properties": {
            "type": {"const": f"io.nats.micro.v1.{kind}_response"},
            "name": _NAME,
            "id": {"type": "string", "minLength": 1},
            "version": _VERSION,
            "metadata": _METADATA,
            **more,
        },
    }


def _endpoint(more: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "subject", *required],
        "additionalProperties": False,
        "properties": {"name": _NAME, "subject": _SUBJECT, "queue_group": {"type": "string", "minLength": 1}, **more},
    }


_FIGURES = {
    "num_requests": _COUNT,
    "num_errors": _COUNT,
    "last_error": {"type": "string"},
    "processing_time": _COUNT,
    "average_processing_time": _COUNT,
    "data": {},
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "PING": _response("ping", {}, []),
    "INFO": _response(
        "info",
        {
            "description": {"type": "string"},
            "endpoints": {"type": "array", "items": _endpoint({"metadata": _METADATA}, [])},
        },
        ["description", "endpoints"],
    ),
    "STATS": _response(
        "stats",
        {
            "started": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"},
            "endpoints": {
                "type": "array",
                "items": _endpoint(_FIGURES, [name for name in _FIGURES if name != "data"]),
            },
        },
        ["started", "endpoints"],
    ),
}


def check(verb: str, answer: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError."""
    jsonschema.Draft7Validator(SCHEMAS[verb]).validate(answer)
