"""Tools of a responses body, and which of them the model may or must call.

| type | becomes |
|---|---|
| function | itself |
| custom (freeform) | a function with one text parameter, `input`, held to its grammar; its calls go back as custom |
| namespace | its functions, named `<namespace>__<name>`; their calls go back with both names apart |
| those that OpenAI's servers run, or whose schemas only its models know | nothing: clients send them along |
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.dialects import conversation, fields
from gateway.dialects.fields import bad
from gateway.dialects.openai_constraint import MAX_GRAMMAR
from gateway.dialects.parameters import note_strangers
from gateway.errors import NotSupported
from shared.messages import Constraint

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KNOWN = {  # of a tool, by its type
    "function": frozenset(("type", "name", "description", "parameters", "strict")),
    "custom": frozenset(("type", "name", "description", "format")),
    "namespace": frozenset(("type", "name", "description", "tools")),
}
_GRAMMAR, _FREE = frozenset(("type", "syntax", "definition")), frozenset(("type",))
_NAMED, _ALLOWED = frozenset(("type", "name", "namespace")), frozenset(("type", "mode", "tools"))


@dataclass(frozen=True, slots=True)
class Named:
    """A tool as its client knows it."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None = None


@dataclass(slots=True)
class Tools:
    """The tools of one request."""

    listed: list[dict[str, Any]] = field(default_factory=list)  # in the normal form
    named: dict[str, Named] = field(default_factory=dict)  # by the name that the model sees
    freeform: dict[str, Constraint] = field(default_factory=dict)  # likewise: what the text of a custom tool must match
    dropped: list[str] = field(default_factory=list)  # paths of what has no effect
    echo: list[dict[str, Any]] = field(default_factory=list)  # as the answer repeats them


def flat_name(name: str, namespace: str | None) -> str:
    """The name that the model sees."""
    return f"{namespace}__{name}" if namespace else name


def read(body: dict[str, Any]) -> Tools:
    """The tools of a body. Raises InvalidRequest naming the field."""
    tools = Tools()
    for index, tool in enumerate(fields.array(body, "tools", MAX_TOOLS) or []):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise bad(where, "must be an object", tool)
        kind = fields.string(tool, "type", f"{where}.")
        if kind is None:
            raise bad(f"{where}.type", 'is required, such as "function"')
        if kind == "namespace":
            _namespace(tool, where, tools)
        elif kind in ("function", "custom"):
            _add(tool, where, tools, None)
        else:
            tools.dropped.append(where)
            continue
        note_strangers(tool, f"{where}.", _KNOWN[kind], tools.dropped)
        tools.echo.append(_echo(tool))
    return tools


def choose(body: dict[str, Any], tools: Tools) -> str:
    """`Prompt.tool_choice`. A list of allowed tools takes the others away. Raises naming the field."""
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    if choice == "required":
        return _required(tools)
    if not isinstance(choice, dict):
        raise bad("tool_choice", 'must be "auto", "none", "required" or an object', choice)
    kind = fields.string(choice, "type", "tool_choice.")
    if kind in ("function", "custom"):
        return f"={_known(choice, 'tool_choice', tools)}"
    if kind != "allowed_tools":
        raise NotSupported(
            f"tool_choice.type {(kind or 'null')[:40]!r} is not supported: use function, custom or allowed_tools.",
            param="tool_choice.type",
        )
    note_strangers(choice, "tool_choice.", _ALLOWED, tools.dropped)
    mode = fields.string(choice, "mode", "tool_choice.") or "auto"
    if mode not in ("auto", "required"):
        raise bad("tool_choice.mode", 'must be "auto" or "required"', mode)
    allowed = set()
    for index, one in enumerate(fields.array(choice, "tools", MAX_TOOLS, "tool_choice.") or []):
        where = f"tool_choice.tools[{index}]"
        if not isinstance(one, dict):
            raise bad(where, "must be an object", one)
        if one.get("type") in ("function", "custom"):
            allowed.add(_known(one, where, tools))
        else:
            tools.dropped.append(where)
    tools.listed = [tool for tool in tools.listed if tool["function"]["name"] in allowed]
    return _required(tools) if mode == "required" else "auto"


def _required(tools: Tools) -> str:
    if not tools.listed:
        raise bad("tool_choice", "needs tools that can be served: there is nothing to call")
    return "required"


def _known(choice: dict[str, Any], where: str, tools: Tools) -> str:
    note_strangers(choice, f"{where}.", _NAMED, tools.dropped)
    name = fields.string(choice, "name", f"{where}.")
    if name is None:
        raise bad(f"{where}.name", "is required")
    flat = flat_name(name, fields.string(choice, "namespace", f"{where}."))
    if flat not in tools.named:
        raise bad(f"{where}.name", "must be the name of one of the tools", name)
    return flat


def _namespace(tool: dict[str, Any], where: str, tools: Tools) -> None:
    namespace = _name(tool, where)
    for index, inner in enumerate(fields.array(tool, "tools", MAX_TOOLS, f"{where}.") or []):
        path = f"{where}.tools[{index}]"
        if not isinstance(inner, dict):
            raise bad(path, "must be an object", inner)
        if inner.get("type") in ("function", "custom"):
            note_strangers(inner, f"{path}.", _KNOWN[inner["type"]], tools.dropped)
            _add(inner, path, tools, namespace)
        else:
            tools.dropped.append(path)


def _add(tool: dict[str, Any], where: str, tools: Tools, namespace: str | None) -> None:
    path = f"{where}."
    name = _name(tool, where)
    flat = flat_name(name, namespace)
    if flat in tools.named:
        raise bad(f"{path}name", "must be unique", name)
    description = fields.string(tool, "description", path)
    if tool["type"] == "custom":
        tools.named[flat] = Named("custom", name, namespace)
        form = _form(fields.mapping(tool, "format", path) or {}, f"{path}format.", tools.dropped)
        if form is not None:
            tools.freeform[flat] = form
        tools.listed.append(_freeform(flat, description, form))
        return
    parameters = fields.mapping(tool, "parameters", path)
    if parameters is not None:
        fields.check_depth(parameters, f"{path}parameters")
    tools.named[flat] = Named("function", name, namespace)
    strict = bool(fields.boolean(tool, "strict", path))
    tools.listed.append(conversation.function(flat, description, parameters, strict))


def _form(form: dict[str, Any], where: str, dropped: list[str]) -> Constraint | None:
    """What the text of a custom tool must match; None: it is free. Raises InvalidRequest naming the field."""
    kind = fields.string(form, "type", where)
    note_strangers(form, where, _GRAMMAR if kind == "grammar" else _FREE, dropped)
    if kind in (None, "text"):
        return None
    if kind != "grammar":
        raise bad(f"{where}type", 'must be "text" or "grammar"', kind)
    syntax, definition = fields.string(form, "syntax", where), fields.string(form, "definition", where)
    if syntax not in ("lark", "regex"):
        raise bad(f"{where}syntax", 'must be "lark" or "regex"', syntax if syntax is not None else "null")
    if not definition or len(definition) > MAX_GRAMMAR:
        raise bad(f"{where}definition", f"must be a text of 1 to {MAX_GRAMMAR} characters")
    return Constraint(kind="grammar" if syntax == "lark" else "regex", value=definition)


def _freeform(name: str, description: str | None, form: Constraint | None) -> dict[str, Any]:
    """A tool that takes free text."""
    rule = "The text, as it is."
    if form is not None:
        rule = f"Text of this {'lark' if form.kind == 'grammar' else 'regex'} grammar:\n{form.value}"
    parameters = {
        "type": "object",
        "properties": {"input": {"type": "string", "description": rule}},
        "required": ["input"],
        "additionalProperties": False,
    }
    return conversation.function(name, description, parameters, strict=False)


def _name(tool: dict[str, Any], where: str) -> str:
    name = fields.string(tool, "name", f"{where}.")
    if name is None or not _NAME.fullmatch(name):
        raise bad(f"{where}.name", "must be 1 to 128 letters, digits, '_', '-', '.' or ':'", name)
    return name


def _echo(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the answer, with the fields that its type always has."""
    if tool["type"] == "function":
        return {"parameters": None, "strict": None, **tool}
    return tool
