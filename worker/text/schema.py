"""JSON schemas as clients send them, bounded and made ready for the constraint library. Pure.

The library is exact: a keyword that it cannot enforce is an error, never dropped in silence. Two things are taken out
before it sees them because they promise nothing: a `format` that it does not know, which JSON Schema itself calls an
annotation, and a `propertyNames` that any property name meets.
"""

import json
from collections.abc import Iterator
from typing import Any

from worker.text.errors import PromptError

MAX_SCHEMA_BYTES = 256 << 10
# The library follows references by recursion, a few kilobytes of stack each; `guidance` gives it room for so many.
MAX_REFERENCES = 2000

# Optional white space between the parts of a JSON text: a space, or a line break with indentation. Unbounded white
# space is where small models lose themselves.
WHITESPACE = r"[ ]|\n[ ]{0,24}"

_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
_VALUES = {"const", "enum", "default", "example", "examples"}  # what stands there is data, not schema
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}  # of names to schemas


def prepare(schema: Any, param: str) -> dict[str, Any]:
    """Return a copy of `schema` for the library's `%json`. Raises `PromptError` for `param`."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise PromptError(f"{param} is not a JSON schema: send an object.", param)
    try:
        size = len(json.dumps(schema))
        copy = _clean(schema)
    except (RecursionError, ValueError, TypeError) as error:
        raise PromptError(f"{param} is nested too deeply or is no JSON.", param) from error
    if size > MAX_SCHEMA_BYTES:
        raise PromptError(f"{param} has {size} bytes; a schema may have {MAX_SCHEMA_BYTES}.", param)
    if (count := sum(1 for _ in _references(copy))) > MAX_REFERENCES:
        raise PromptError(f"{param} has {count} $ref; a schema may have {MAX_REFERENCES}.", param)
    copy["x-guidance"] = {"whitespace_pattern": WHITESPACE}
    return copy


def resolve(schema: Any, root: dict[str, Any], *, max_hops: int = 16) -> Any:
    """Follow a schema's `$ref` within `root` while it consists of nothing else that counts."""
    for _ in range(max_hops):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        target: Any = root
        for part in reference.lstrip("#").strip("/").split("/") if reference.strip("#/") else []:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                return schema
            target = target[name]
        schema = target
    return schema


def _clean(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_clean(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key in _VALUES:
            result[key] = value
        elif key in _MAPS and isinstance(value, dict):
            result[key] = {name: _clean(part) for name, part in value.items()}
        elif not _is_void(key, value):
            result[key] = _clean(value)
    return result


def _is_void(key: str, value: Any) -> bool:
    """Whether a keyword promises nothing, or is not the client's to set."""
    match key:
        case "format":
            return isinstance(value, str) and value not in _FORMATS
        case "propertyNames":
            return value in ({}, True, {"type": "string"})
        case _:
            return key == "x-guidance"


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)
