"""Tools of a chat body, and which of them the model may or must call."""

import re
from typing import Any

from gateway.dialects import fields
from gateway.dialects.fields import bad
from gateway.errors import NotSupported

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The function tools of a body, checked. Raises InvalidRequest or NotSupported naming the field."""
    given = fields.array(body, "tools", MAX_TOOLS) or []
    checked = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given)]
    names = [tool["function"]["name"] for tool in checked]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise bad(f"tools[{index}].function.name", "must be unique", name)
    return checked


def tool_choice(body: dict[str, Any], given: list[dict[str, Any]]) -> str:
    """auto, none, required, or =<name>, as `Prompt.tool_choice` has it."""
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    if isinstance(choice, dict):
        choice = _named(choice, {tool["function"]["name"] for tool in given})
    elif choice != "required":
        raise bad("tool_choice", 'must be "auto", "none", "required" or an object that names a function', choice)
    if not given:
        raise bad("tool_choice", "needs tools: there is nothing to call")
    return str(choice)


def _named(choice: dict[str, Any], names: set[str]) -> str:
    kind = fields.string(choice, "type", "tool_choice.")
    if kind != "function":
        raise NotSupported(
            f'tool_choice.type {(kind or "null")[:40]!r} is not supported: use "function".', param="tool_choice.type"
        )
    function = fields.mapping(choice, "function", "tool_choice.") or {}
    name = fields.string(function, "name", "tool_choice.function.")
    if name is None:
        raise bad("tool_choice.function.name", "is required")
    if name not in names:
        raise bad("tool_choice.function.name", "must be the name of one of the tools", name)
    return f"={name}"


def _tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise bad(where, "must be an object", tool)
    kind = fields.string(tool, "type", f"{where}.")
    if kind != "function":
        raise bad(f"{where}.type", 'must be "function"', kind)
    function = fields.mapping(tool, "function", f"{where}.")
    if function is None:
        raise bad(f"{where}.function", "is required")
    path = f"{where}.function."
    name = fields.string(function, "name", path)
    if name is None or not _NAME.fullmatch(name):
        raise bad(f"{path}name", "must be 1 to 128 letters, digits, '_', '-', '.' or ':'", name)
    fields.string(function, "description", path)
    parameters = fields.mapping(function, "parameters", path)
    fields.boolean(function, "strict", path)
    if parameters is not None:
        fields.check_depth(parameters, f"{path}parameters")
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}
