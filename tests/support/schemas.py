"""JSON schemas of the kinds that clients send."""

from typing import Any

_POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def _closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Any] = {
    "string": {"type": "string", "maxLength": 12},
    "string of a length": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "unanchored pattern": {"type": "string", "pattern": "[0-9]", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "unknown format": {"type": "string", "format": "credit-card", "maxLength": 8},
    "integer": {"type": "integer"},
    "integer between": {"type": "integer", "minimum": -7, "maximum": 130},
    "exclusive": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 11},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "number": {"type": "number"},
    "number between": {"type": "number", "minimum": 0.25, "maximum": 0.75},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["red", "green", 3, None, {"a": [1]}]},
    "const": {"const": {"kind": "fixed", "n": [1, 2, 3]}},
    "types": {"type": ["integer", "boolean", "null"]},
    "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 5},
    "list of a length": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
    "tuple": {
        "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
        "items": False,
        "type": "array",
        "minItems": 2,
    },
    "list of lists": {
        "type": "array",
        "maxItems": 2,
        "items": {"type": "array", "maxItems": 2, "items": {"enum": [0, 1]}},
    },
    "empty object": {"type": "object", "properties": {}, "additionalProperties": False},
    "object": _POINT,
    "optional": _closed(["a"], a={"type": "integer"}, b={"type": "integer"}, c={"type": "boolean"}),
    "nested": _closed(inner=_closed(deeper=_closed(deepest={"type": "boolean"}))),
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^n_": {"type": "integer"}},
        "additionalProperties": False,
    },
    "definitions": {"$defs": {"P": _POINT}, **_closed(**{"from": {"$ref": "#/$defs/P"}, "to": {"$ref": "#/$defs/P"}})},
    "old definitions": {
        "definitions": {"N": {"type": "integer"}},
        "type": "array",
        "maxItems": 3,
        "items": {"$ref": "#/definitions/N"},
    },
    "recursive": {
        "$defs": {"T": _closed(["v"], v={"type": "integer"}, next={"$ref": "#/$defs/T"})},
        "$ref": "#/$defs/T",
    },
    "tree": {
        "$defs": {
            "T": _closed(v={"type": "boolean"}, kids={"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/T"}})
        },
        "$ref": "#/$defs/T",
    },
    "any of": {"anyOf": [{"type": "integer"}, _POINT, {"type": "null"}]},
    "one of kinds": {
        "oneOf": [
            _closed(kind={"const": "a"}, n={"type": "integer"}),
            _closed(kind={"const": "b"}, on={"type": "boolean"}),
        ]
    },
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "nullable": _closed(a={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    "pydantic": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Answer",
        "description": "What the model found.",
        "$defs": {"Level": {"title": "Level", "enum": ["low", "high"], "type": "string"}},
        **_closed(
            level={"$ref": "#/$defs/Level", "description": "how sure"},
            score={"default": 0, "maximum": 10, "minimum": 0, "title": "Score", "type": "integer"},
            tags={
                "default": [],
                "items": {"maxLength": 4, "type": "string"},
                "maxItems": 2,
                "title": "Tags",
                "type": "array",
            },
        ),
    },
    "zod record": {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 2,
    },
    "names that need quotes": _closed(
        **{'a"b': {"type": "integer"}, "c\\d": {"type": "integer"}, "é🙂": {"type": "integer"}}
    ),
    "texts that need quotes": {"enum": ['"', "\\", "\n", "</tool_call>", "🙂"]},
    "open object": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "maxProperties": 1},
    "big numbers": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
    "anything": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
    "true": True,
}
