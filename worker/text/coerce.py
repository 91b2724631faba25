"""Parameters that models write without JSON quotes, given the type that the tool's schema declares."""

import json
from collections.abc import Mapping
from typing import Any

Properties = Mapping[str, Any]
"""JSON schema of each parameter, by name."""

_JSON_TYPE: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}
NOT_JSON = (ValueError, RecursionError)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


JSON = json.JSONDecoder(parse_constant=_no_constant)  # NaN and Infinity would make invalid JSON of the arguments


def dump(value: Any) -> str:
    """JSON text as the other parts of an answer have it."""
    return json.dumps(value, ensure_ascii=False)


def coerce(text: str, schema: Any) -> Any:
    """Give the text of a parameter the type that its schema declares; without one, JSON where it is JSON."""
    types = types_of(schema)
    if types and types <= {"string"}:
        return text
    try:
        value = JSON.decode(text)
    except NOT_JSON:
        lowered = text.strip().lower()
        if "boolean" in types and lowered in ("true", "false"):
            return lowered == "true"
        if "null" in types and lowered in ("none", "null"):
            return None
        return text
    kind = _JSON_TYPE[type(value)]
    if "string" in types:  # strings stand here without quotes, so whatever is no other allowed type is one
        others = types - {"string"}
        return value if kind in others or (kind == "integer" and "number" in others) else text
    return value


def is_text(schema: Any) -> bool:
    """Whether a parameter can be nothing but a string."""
    return types_of(schema) == {"string"}


def types_of(schema: Any) -> set[str]:
    """The JSON types that a schema allows, as far as it says so plainly."""
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared) if isinstance(declared, list) else set()
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types |= types_of(branch)
    if not types and isinstance(schema.get("enum"), list) and all(isinstance(item, str) for item in schema["enum"]):
        types = {"string"}
    return types
