"""What an OpenAI body says about the form of the answer, under any of its names: one `Constraint` or none.

Besides response_format these are the names that local servers use: grammar, regex and json_schema at the top, the
guided_* family, and structured_outputs.
"""

from typing import Any

import orjson

from gateway.dialects import fields
from gateway.dialects.fields import bad
from gateway.dialects.parameters import note_strangers
from gateway.errors import InvalidRequest, NotSupported
from shared.messages import Constraint

MAX_CHOICE_STRINGS = 1024
MAX_GRAMMAR = 1 << 18  # characters; the worker bounds what a grammar may cost once it is compiled

HONOURED = {
    "response_format": "text, json_object, json_schema (constrained decoding, whether strict or not)",
    "grammar": "an extension: a Lark grammar",
    "regex": "an extension: a regular expression that the whole answer matches",
    "json_schema": "an extension: as response_format with this schema",
    "guided_json": "an extension: as json_schema; may be the schema as JSON text",
    "guided_regex": "an extension: as regex",
    "guided_choice": "an extension: the answer is one of these strings",
    "guided_grammar": "an extension: as grammar",
    "structured_outputs": "an extension: an object with one of json, regex, choice, grammar, json_object",
}
_NAMES = HONOURED.keys()
SCHEMA_FORMAT = frozenset(("name", "description", "strict", "schema"))  # but the schema, none changes anything


def constraint(body: dict[str, Any], dropped: list[str]) -> Constraint | None:
    """The constraint of a body. What has no effect is added to `dropped`.

    Raises InvalidRequest or NotSupported naming the field, also when there are two.
    """
    if _NAMES.isdisjoint(body):
        return None
    found: dict[str, Constraint] = {}
    if (chosen := _response_format(body, dropped)) is not None:
        found["response_format"] = chosen
    for name, kind in _TOP.items():
        if body.get(name) is not None and body[name] != "":
            found[name] = _KINDS[kind](body[name], name)
    outputs = fields.mapping(body, "structured_outputs") or {}
    for name, value in outputs.items():
        if value is None or value is False:
            continue
        if name not in _KINDS:
            raise NotSupported(
                f"structured_outputs.{name[:40]} is not supported: use one of {', '.join(_KINDS)}.",
                param=f"structured_outputs.{name[:40]}",
            )
        found[f"structured_outputs.{name}"] = _KINDS[name](value, f"structured_outputs.{name}")
    if len(found) > 1:
        first, second = list(found)[:2]
        raise InvalidRequest(f"{second} and {first} both say what form the answer has; send one.", param=second)
    return next(iter(found.values()), None)


def _response_format(body: dict[str, Any], dropped: list[str]) -> Constraint | None:
    chosen = fields.mapping(body, "response_format")
    if chosen is None:
        return None
    where = "response_format."
    kind = fields.string(chosen, "type", where)
    note_strangers(chosen, where, _OF_FORMAT.get(kind or "", _OF_TEXT), dropped)
    if kind == "text":
        return None
    if kind == "json_object":  # some servers take a schema beside it, and some clients send it so
        schema = chosen.get("schema")
        return _json_object(True, where) if schema is None else schema_constraint(schema, f"{where}schema")
    if kind == "json_schema":
        wrapper = fields.mapping(chosen, "json_schema", where)
        if wrapper is None:
            raise bad(f"{where}json_schema", "is required with the type json_schema")
        where += "json_schema."
        note_strangers(wrapper, where, SCHEMA_FORMAT, dropped)
        fields.string(wrapper, "name", where)
        fields.string(wrapper, "description", where)
        fields.boolean(wrapper, "strict", where)
        if wrapper.get("schema") is None:
            raise bad(f"{where}schema", "is required: a JSON schema")
        return schema_constraint(wrapper["schema"], f"{where}schema")
    if kind is None:
        raise bad(f"{where}type", 'is required: "text", "json_object" or "json_schema"')
    raise NotSupported(
        f'{where}type {kind[:40]!r} is not supported: use "text", "json_object" or "json_schema".', param=f"{where}type"
    )


def schema_constraint(value: object, where: str) -> Constraint:
    """The constraint that a JSON schema is. Whether its keywords can be served is found where it is compiled."""
    if not isinstance(value, dict):
        raise bad(where, "must be an object: a JSON schema", value)
    fields.check_depth(value, where)
    return Constraint(kind="json_schema", value=value)


def _json(value: object, where: str) -> Constraint:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise bad(where, "must be a JSON schema, as an object or as JSON text") from None
    return schema_constraint(value, where)


def _json_object(value: object, where: str) -> Constraint:
    if value is not True:
        raise bad(where, "must be true or false", value)
    return Constraint(kind="json_object")


def _regex(value: object, where: str) -> Constraint:
    return Constraint(kind="regex", value=_source(value, where))


def _grammar(value: object, where: str) -> Constraint:
    return Constraint(kind="grammar", value=_source(value, where))


def _source(value: object, where: str) -> str:
    text = fields.text(value, where)
    if len(text) > MAX_GRAMMAR:
        raise bad(where, f"must have at most {MAX_GRAMMAR} characters, and this has {len(text)}")
    return text


def _choice(value: object, where: str) -> Constraint:
    options = fields.array({where: value}, where, MAX_CHOICE_STRINGS) or []
    texts = [fields.text(one, f"{where}[{index}]") for index, one in enumerate(options)]
    if not texts or not all(texts):
        raise bad(where, "must have at least one string, and none that is empty")
    return Constraint(kind="grammar", value="start: " + " | ".join(orjson.dumps(one).decode() for one in texts))


_OF_TEXT = frozenset(("type",))
_OF_FORMAT = {"json_object": frozenset(("type", "schema")), "json_schema": frozenset(("type", "json_schema"))}
_KINDS = {"json": _json, "regex": _regex, "choice": _choice, "grammar": _grammar, "json_object": _json_object}
_TOP = {
    "grammar": "grammar",
    "regex": "regex",
    "json_schema": "json",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
