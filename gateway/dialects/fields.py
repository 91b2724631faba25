"""Typed reading of JSON objects from strangers: every refusal names the field, its rule and what came instead.

null stands for "not given" everywhere, as OpenAI's API has it.
"""

from typing import Any

from gateway.body import kind_of
from gateway.errors import InvalidRequest

MAX_DEPTH = 64  # of free-form values: schemas, template variables


def bad(path: str, rule: str, value: object = None) -> InvalidRequest:
    """The refusal of one field."""
    came = "" if value is None else f", and this is {_shown(value)}"
    return InvalidRequest(f"{path} {rule}{came}.", param=path)


def string(body: dict[str, Any], key: str, path: str = "") -> str | None:
    """A string without NUL."""
    value, where = body.get(key), path + key
    return None if value is None else text(value, where)


def text(value: object, where: str) -> str:
    """`value` as a string without NUL, which no tokenizer or template is made for."""
    if not isinstance(value, str):
        raise bad(where, "must be a string", value)
    if "\0" in value:
        raise bad(where, "must not contain NUL characters")
    return value


def boolean(body: dict[str, Any], key: str, path: str = "") -> bool | None:
    """true or false."""
    value = body.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise bad(path + key, "must be true or false", value)


def integer(body: dict[str, Any], key: str, low: int, high: int, path: str = "") -> int | None:
    """A whole number in [low, high]."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(path + key, "must be an integer", value)
    if not low <= value <= high:
        raise bad(path + key, f"must be between {low} and {high}", value)
    return value


def count(body: dict[str, Any], key: str, path: str = "") -> int | None:
    """A number of tokens, at least 1. Too large is no error: the context clamps it."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value >= 2**63:
        value = 2**31 - 1
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(path + key, "must be an integer", value)
    if value < 1:
        raise bad(path + key, "must be at least 1", value)
    return min(value, 2**31 - 1)


def number(body: dict[str, Any], key: str, low: float, high: float, path: str = "") -> float | None:
    """A number in [low, high]."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad(path + key, "must be a number", value)
    if not low <= value <= high:
        raise bad(path + key, f"must be between {low:g} and {high:g}", value)
    return float(value)


def mapping(body: dict[str, Any], key: str, path: str = "") -> dict[str, Any] | None:
    """An object."""
    value = body.get(key)
    if value is None or isinstance(value, dict):
        return value
    raise bad(path + key, "must be an object", value)


def array(body: dict[str, Any], key: str, most: int, path: str = "") -> list[Any] | None:
    """An array of at most `most` items."""
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise bad(path + key, "must be an array", value)
    if len(value) > most:
        raise bad(path + key, f"must have at most {most} items, and this has {len(value)}")
    return value


def check_depth(value: object, where: str, most: int = MAX_DEPTH) -> None:
    """Refuses free-form values that nest so deep that a later reader would fail on them."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise bad(where, f"must not nest deeper than {most} levels")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value}"[:40]
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    return kind_of(value)
