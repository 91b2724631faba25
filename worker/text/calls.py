"""Reading the body of a tool call: what stands between the markers, in the forms that models write.

Each reader takes the body and the tools' parameter schemas, and returns the calls in it, or None when the body is not
of its form. None means that the text is given to the client as it is: nothing is lost, nothing is guessed.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from worker.text.errors import PromptError


class Call(NamedTuple):
    """One tool call. `arguments` is JSON text."""

    name: str
    arguments: str


Schemas = Mapping[str, Mapping[str, Any]]
"""JSON schema of each parameter, by tool and parameter name."""

Reader = Callable[[str, Schemas], list[Call] | None]

_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_ARG_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NAMED = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?=\s*\{)")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)  # NaN and Infinity would make invalid JSON of the arguments
_NOT_JSON = (ValueError, RecursionError)
_JSON_TYPE: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


def schemas_of(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the parameter schemas of OpenAI function tools. Raises `PromptError`."""
    schemas = {}
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise PromptError(f"tools[{index}] has no function name.", "tools")
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        schemas[function["name"]] = properties if isinstance(properties, dict) else {}
    return schemas


def read_tagged(body: str, schemas: Schemas) -> list[Call] | None:
    """What stands in `<tool_call>…</tool_call>`: JSON (Hermes, Qwen), function tags (Qwen-Coder) or pairs (GLM)."""
    body = body.strip()
    if body.startswith(("{", "[")):
        return read_json(body, schemas)
    if "<function=" in body:
        return _read_function_tags(body, schemas)
    return _read_pairs(body, schemas)


def read_json(body: str, schemas: Schemas) -> list[Call] | None:
    """JSON objects with name and arguments: one, an array, or several with `;` or white space between (Llama 3)."""
    values: list[Any] = []
    rest = body.strip()
    while rest:
        try:
            value, end = _JSON.raw_decode(rest)
        except _NOT_JSON:
            return None
        values.extend(value if isinstance(value, list) else [value])
        rest = rest[end:].lstrip(" \t\r\n;")
    calls = [_json_call(value) for value in values]
    return [call for call in calls if call] if calls and all(calls) else None


def read_mistral(body: str, schemas: Schemas) -> list[Call] | None:
    """After `[TOOL_CALLS]`: a JSON array, or from 2025 on a bare name, `[ARGS]` and an object."""
    body = body.strip()
    named = _NAMED.match(body)
    if not named:
        return read_json(body, schemas)
    arguments = read_arguments(body[named.end() :])
    return None if arguments is None else [Call(named[1], arguments)]


def read_arguments(text: str) -> str | None:
    """The arguments of a call as plain JSON text; None when they are no JSON object."""
    try:
        value = _JSON.decode(text.strip())
    except _NOT_JSON:
        return None
    return _dump(value) if isinstance(value, dict) else None


def _json_call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if isinstance(function, dict):  # the whole OpenAI object
        value = function
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    text = arguments if isinstance(arguments, str) else _dump({} if arguments is None else arguments)
    plain = read_arguments(text)
    return None if plain is None else Call(name, plain)


def _read_function_tags(body: str, schemas: Schemas) -> list[Call] | None:
    if _FUNCTION.sub("", body).strip():
        return None
    calls = []
    for function in _FUNCTION.finditer(body):
        name = function[1].strip()
        arguments = {
            key.strip(): _coerce(value.removeprefix("\n").removesuffix("\n"), schemas.get(name, {}).get(key.strip()))
            for key, value in _PARAMETER.findall(function[2])
        }
        calls.append(Call(name, _dump(arguments)))
    return calls or None


def _read_pairs(body: str, schemas: Schemas) -> list[Call] | None:
    name, _, pairs = body.partition("\n")
    if "<arg_key>" in name:
        name, _, _ = body.partition("<arg_key>")
        pairs = body[len(name) :]
    name = name.strip()
    found = _ARG_PAIR.findall(pairs)
    if not re.fullmatch(r"[\w.-]+", name) or (not found and (pairs.strip() or name not in schemas)):
        return None
    types = schemas.get(name, {})
    return [Call(name, _dump({key.strip(): _coerce(value, types.get(key.strip())) for key, value in found}))]


def _coerce(text: str, schema: Any) -> Any:
    """Give the text of a parameter the type that its schema declares; without one, JSON where it is JSON."""
    types = _types(schema)
    if types and types <= {"string"}:
        return text
    try:
        value = _JSON.decode(text)
    except _NOT_JSON:
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


def _types(schema: Any) -> set[str]:
    """The JSON types that a schema allows, as far as it says so plainly."""
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared) if isinstance(declared, list) else set()
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types |= _types(branch)
    if not types and isinstance(schema.get("enum"), list) and all(isinstance(item, str) for item in schema["enum"]):
        types = {"string"}
    return types


def _dump(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)
