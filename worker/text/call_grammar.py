"""Grammars of tool calls: in each model's own convention, arguments that validate against the tool's schema. Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.messages import Constraint
from worker.text.coerce import dump
from worker.text.errors import PromptError
from worker.text.flatten import MAX_CHARACTERS, NotRegular, flatten
from worker.text.lark import Rules, Symbol, literal
from worker.text.raw_values import RawValues
from worker.text.schema import prepare, resolve
from worker.text.tools import Convention, Form

MAX_CALLS = 32  # in one answer
_BREAK, _BRACE = literal("\n"), literal("}")
_NAME = re.compile(r"[\w.:-]{1,128}")
_OF_OBJECTS = {"type", "properties", "required", "additionalProperties"}
_IGNORED = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "$comment"}


@dataclass(frozen=True)
class Function:
    """A tool that may be called. `parameters` is ready for the library; `param` is the field it came in."""

    name: str
    parameters: dict[str, Any]
    param: str


def functions_of(
    tools: list[dict[str, Any]], freeform: Mapping[str, Constraint], *, only: str = "", loose: bool = False
) -> list[Function]:
    """The tools that may be called. Raises `PromptError`.

    Args:
        freeform: by tool, what its text must match.
        only: the name of the single one to call; empty: any.
        loose: arguments of tools that are not `strict` may be any object.
    """
    functions = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool)
        name, parameters = function["name"], function.get("parameters")
        if only and name != only:
            continue
        if not _NAME.fullmatch(name):
            raise PromptError(f"tools[{index}].function.name may hold letters, digits and _ - . :", "tools")
        param = f"tools[{index}].function.parameters"
        if name in freeform and (text_only := _text_only(name, freeform[name], is_optional=loose)):
            functions.append(Function(name, prepare(text_only, "tools"), "tools"))
            continue
        is_loose = loose and not function.get("strict")
        functions.append(
            Function(name, prepare({"type": "object"} if is_loose else _object(parameters, param), param), param)
        )
    if not functions:
        raise PromptError(
            f"tool_choice names {only!r}, which is none of the tools." if only else "tools is empty.", "tool_choice"
        )
    return functions


def calls(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, *, many: bool) -> str:
    """One call or, with `many`, several, as the convention writes them."""
    return _FORMS[convention.form](rules, convention, functions, symbol, MAX_CALLS if many else 1)


def harmony_call(rules: Rules, functions: list[Function], symbol: Symbol) -> str:
    """A message of gpt-oss to a tool, after its channel mark. One: its end ends the answer."""
    kind = f'{symbol("<|constrain|>")} "json" {symbol("<|message|>")}'
    heads = [literal(f"commentary to=functions.{function.name} ") for function in functions]
    return rules.one_of(
        [rules.add(f"{head} {kind} {rules.json(one.parameters)}") for head, one in zip(heads, functions, strict=True)]
    )


def _object(parameters: Any, param: str) -> dict[str, Any]:
    """The schema of arguments: an object, with no members but the declared ones unless it says otherwise."""
    if parameters is None or parameters == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise PromptError(f"{param} must be the schema of an object.", param)
    result = {"type": "object", **parameters}
    if "properties" in result and not {
        "additionalProperties",
        "patternProperties",
        "allOf",
        "anyOf",
        "oneOf",
        "$ref",
    } & set(result):
        result["additionalProperties"] = False
    return result


def _text_only(name: str, form: Constraint, *, is_optional: bool) -> dict[str, Any] | None:
    """The schema of a freeform tool: one text. None where it cannot be held to its grammar, and need not be."""
    if not isinstance(form.value, str) or form.kind not in ("regex", "grammar"):
        raise PromptError(f"The form of the tool {name!r} must be a regular expression or a grammar, as text.", "tools")
    try:
        pattern = form.value if form.kind == "regex" else flatten(form.value)
    except NotRegular as error:
        if is_optional:
            return None
        raise PromptError(
            f"The grammar of the tool {name!r} cannot be enforced in a required call: {error}. "
            "A grammar without recursion can be; or let the model choose whether to call.",
            "tools",
        ) from error
    if len(pattern) > MAX_CHARACTERS:
        raise PromptError(f"The form of the tool {name!r} is longer than {MAX_CHARACTERS} characters.", "tools")
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    text = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}


def _repeat(first: str, more: str, most: int) -> str:
    return first if most == 1 else f"{first} ({more}){{0,{most - 1}}}"


def _objects(rules: Rules, functions: list[Function], key: str) -> str:
    """JSON objects of name and arguments. The white space is what templates write, so it is what models know."""
    items = []
    for function in functions:
        head = literal('{"name": ' + dump(function.name) + f", {dump(key)}: ")
        items.append(rules.add(f"{head} {rules.json(function.parameters)} {_BRACE}"))
    return rules.add(rules.one_of(items))


def _json(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    item = _objects(rules, functions, "arguments")
    call = rules.add(f"{symbol(convention.opening)} {_BREAK} {item} {_BREAK} {symbol(convention.closing)}")
    return rules.add(_repeat(call, f"{_BREAK} {call}", most))


def _array(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    item = _objects(rules, functions, "arguments")
    closing = symbol(convention.closing) if convention.closing else ""
    items = _repeat(item, f"{literal(', ')} {item}", most)
    return rules.add(f'{symbol(convention.opening)} " "? "[" {items} "]" {closing}'.strip())


def _named(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    opening, separator = symbol(convention.opening), symbol("[ARGS]")
    call = rules.one_of(
        [rules.add(f"{opening} {literal(one.name)} {separator} {rules.json(one.parameters)}") for one in functions]
    )
    call = rules.add(call)
    return rules.add(_repeat(call, call, most))


def _bare(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    """One only: the templates of this family refuse several."""
    return _objects(rules, functions, "parameters")


def _framed(
    rules: Rules,
    convention: Convention,
    functions: list[Function],
    symbol: Symbol,
    most: int,
    heads: list[str],
    tail: str,
) -> str:
    """Calls between marks of their own, all of them between two more."""
    bodies = [
        rules.add(
            f"{symbol(convention.opening)} {head} {rules.json(function.parameters)} {tail} {symbol(convention.closing)}"
        )
        for head, function in zip(heads, functions, strict=True)
    ]
    call = rules.add(rules.one_of(bodies))
    begin, end = (symbol(mark) for mark in convention.frame)
    return rules.add(f"{begin} {_repeat(call, f'{_BREAK}? {call}', most)} {_BREAK}? {end}")


def _deepseek(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    heads = [f"{literal(function.name)} {symbol('<｜tool▁sep｜>')}" for function in functions]
    return _framed(rules, convention, functions, symbol, most, heads, "")


def _deepseek_fenced(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    separator = symbol("<｜tool▁sep｜>")
    heads = [f'"function" {separator} ' + literal(function.name + "\n```json\n") for function in functions]
    return _framed(rules, convention, functions, symbol, most, heads, literal("\n```"))


def _kimi(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    argument = symbol("<|tool_call_argument_begin|>")
    heads = [literal(f"functions.{function.name}:") + f" /[0-9]{{1,3}}/ {argument}" for function in functions]
    return _framed(rules, convention, functions, symbol, most, heads, "")


def _tags(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    bodies = []
    for function in functions:
        values = RawValues(
            rules, function.parameters, function.param, end=literal("\n</parameter>\n"), ends_in_text=True
        )
        parts = [literal(f"<function={function.name}>\n")]
        for key, is_required, schema in _members(function):
            part = rules.add(literal(f"<parameter={key}>\n") + f" {values.value(schema)}")
            parts.append(part if is_required else f"{part}?")
        bodies.append(rules.add(" ".join([*parts, literal("</function>\n")])))
    return _tagged(rules, convention, symbol, most, _BREAK, bodies)


def _pairs(rules: Rules, convention: Convention, functions: list[Function], symbol: Symbol, most: int) -> str:
    marks = [symbol(mark) for mark in ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")]
    is_text = marks[3] == literal("</arg_value>")
    bodies = []
    for function in functions:
        values = RawValues(rules, function.parameters, function.param, end=f"{marks[3]} {_BREAK}", ends_in_text=is_text)
        parts = [literal(f"{function.name}\n")]
        for key, is_required, schema in _members(function):
            head = f"{marks[0]} {literal(key)} {marks[1]} {_BREAK} {marks[2]}"
            part = rules.add(f"{head} {values.value(schema)}")
            parts.append(part if is_required else f"{part}?")
        bodies.append(rules.add(" ".join(parts)))
    return _tagged(rules, convention, symbol, most, "", bodies)


def _tagged(rules: Rules, convention: Convention, symbol: Symbol, most: int, lead: str, bodies: list[str]) -> str:
    opening, closing = symbol(convention.opening), symbol(convention.closing)
    call = rules.add(f"{opening} {lead} {rules.one_of(bodies)} {closing}")
    return rules.add(_repeat(call, f"{_BREAK} {call}", most))


def _members(function: Function) -> list[tuple[str, bool, Any]]:
    """The parameters of a function whose object is no JSON text, in the order of its schema."""
    schema = resolve(
        {key: value for key, value in function.parameters.items() if key != "x-guidance"}, function.parameters
    )
    if unknown := sorted(set(schema) - _OF_OBJECTS - _IGNORED):
        raise PromptError(
            f"{function.param}: the keyword {unknown[0]!r} cannot be kept in this model's way of writing tool calls.",
            function.param,
        )
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise PromptError(f"{function.param}: properties must be an object, and required a list.", function.param)
    names = [*properties, *(key for key in required if key not in properties)]
    if wrong := next(
        (key for key in names if not isinstance(key, str) or not re.fullmatch(r"[^<>\n]{1,200}", key)), None
    ):
        raise PromptError(f"{function.param}: the name {wrong!r} cannot be written in a tag.", function.param)
    return [(key, key in required, properties.get(key, {})) for key in names]


_Writer = Callable[[Rules, Convention, list[Function], Symbol, int], str]

_FORMS: dict[Form, _Writer] = {
    "json": _json,
    "tags": _tags,
    "pairs": _pairs,
    "array": _array,
    "named": _named,
    "bare": _bare,
    "deepseek": _deepseek,
    "deepseek_fenced": _deepseek_fenced,
    "kimi": _kimi,
}
