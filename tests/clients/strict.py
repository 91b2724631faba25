"""Judges answers by a client library's own types, which at run time take nearly anything."""

from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def strict(answer: M, **allowed: Any) -> M:
    """`answer`, once all that came over the wire is of the types that the library declares.

    `allowed` are fields that the service itself sends against those types, with a value to check in their place.
    """
    fields = answer.model_dump(mode="json", exclude_unset=True, warnings=False)
    type(answer).model_validate_json(_json(_replaced(fields, allowed)), strict=True)
    return answer


def _replaced(value: Any, allowed: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {
            key: allowed[key] if key in allowed and inner is None else _replaced(inner, allowed)
            for key, inner in value.items()
        }
    return [_replaced(inner, allowed) for inner in value] if isinstance(value, list) else value


def _json(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value)
