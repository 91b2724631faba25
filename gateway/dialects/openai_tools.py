"""Tools of a chat body, and which of them the model may or must call; also in the older words, as functions."""

import re
from typing import Any, NamedTuple

from gateway.dialects import conversation, fields
from gateway.dialects.fields import bad
from gateway.dialects.parameters import note_strangers
from gateway.errors import InvalidRequest, NotSupported

MAX_TOOLS = 512
NAMES = frozenset(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"))
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_OF_TOOLS = frozenset(("type", "function", "cache_control"))
_OF_FUNCTIONS = frozenset(("name", "description", "parameters", "strict", "cache_control"))
_OF_CHOICE, _OF_NAMED = frozenset(("type", "function")), frozenset(("name",))
_UNUSED = (None, "auto")  # values of a choice that say nothing


class Tools(NamedTuple):
    """What a body says of them."""

    functions: list[dict[str, Any]]
    choice: str = "auto"
    is_parallel: bool = True
    is_legacy: bool = False  # said in the older words, and to be answered so


def read(body: dict[str, Any], dropped: list[str]) -> Tools:
    """All of it, in whichever words. What has no effect is added to `dropped`.

    Raises InvalidRequest or NotSupported naming the field.
    """
    if NAMES.isdisjoint(body):
        return Tools([])
    legacy = is_legacy(body)
    given = functions(body, dropped) if legacy else tools(body, dropped)
    choice = (function_call if legacy else tool_choice)(body, given, dropped)
    return Tools(given, choice, fields.boolean(body, "parallel_tool_calls") is not False and not legacy, legacy)


def tools(body: dict[str, Any], dropped: list[str]) -> list[dict[str, Any]]:
    """The function tools of a body, checked. What has no effect is added to `dropped`.

    Raises InvalidRequest or NotSupported naming the field.
    """
    given = fields.array(body, "tools", MAX_TOOLS) or []
    checked = [_tool(tool, f"tools[{index}]", dropped) for index, tool in enumerate(given)]
    return _unique(checked, "tools[{}].function.name")


def is_legacy(body: dict[str, Any]) -> bool:
    """Whether a body speaks of functions in place of tools, and wants its answer so. Raises InvalidRequest for both."""
    if not body.get("functions"):
        if body.get("function_call") not in (None, "auto", "none"):
            raise bad("function_call", "needs functions: there is nothing to call")
        return False
    if body.get("tools"):
        raise InvalidRequest("functions and tools say the same; send tools.", param="functions")
    return True


def functions(body: dict[str, Any], dropped: list[str]) -> list[dict[str, Any]]:
    """As `tools`, of the older `functions`."""
    given = fields.array(body, "functions", MAX_TOOLS) or []
    checked = []
    for index, function in enumerate(given):
        where = f"functions[{index}]"
        if not isinstance(function, dict):
            raise bad(where, "must be an object", function)
        checked.append(_function(function, f"{where}.", dropped))
    return _unique(checked, "functions[{}].name")


def function_call(body: dict[str, Any], given: list[dict[str, Any]], dropped: list[str]) -> str:
    """As `tool_choice`, of the older `function_call`."""
    dropped += [
        name
        for name, unused in (("tool_choice", _UNUSED), ("parallel_tool_calls", (None, False)))
        if body.get(name) not in unused
    ]  # words that go with tools
    choice = body.get("function_call")
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    if not isinstance(choice, dict):
        raise bad("function_call", 'must be "auto", "none" or an object that names a function', choice)
    return _known(choice, "function_call.", {tool["function"]["name"] for tool in given}, dropped)


def tool_choice(body: dict[str, Any], given: list[dict[str, Any]], dropped: list[str]) -> str:
    """auto, none, required, or =<name>, as `Prompt.tool_choice` has it. What has no effect is added to `dropped`."""
    if body.get("function_call") not in _UNUSED:
        dropped.append("function_call")  # there are no functions that it could be about
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    if isinstance(choice, dict):
        choice = _named(choice, {tool["function"]["name"] for tool in given}, dropped)
    elif choice != "required":
        raise bad("tool_choice", 'must be "auto", "none", "required" or an object that names a function', choice)
    if not given:
        raise bad("tool_choice", "needs tools: there is nothing to call")
    return str(choice)


def _named(choice: dict[str, Any], names: set[str], dropped: list[str]) -> str:
    kind = fields.string(choice, "type", "tool_choice.")
    if kind != "function":
        raise NotSupported(
            f'tool_choice.type {(kind or "null")[:40]!r} is not supported: use "function".', param="tool_choice.type"
        )
    function = fields.mapping(choice, "function", "tool_choice.") or {}
    note_strangers(choice, "tool_choice.", _OF_CHOICE, dropped)
    return _known(function, "tool_choice.function.", names, dropped)


def _known(named: dict[str, Any], path: str, names: set[str], dropped: list[str]) -> str:
    note_strangers(named, path, _OF_NAMED, dropped)
    name = fields.string(named, "name", path)
    if name is None:
        raise bad(f"{path}name", "is required")
    if name not in names:
        raise bad(f"{path}name", "must be the name of one of the tools", name)
    return f"={name}"


def _unique(tools: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in seen:
            raise bad(where.format(index), "must be unique", name)
        seen.add(name)
    return tools


def _tool(tool: object, where: str, dropped: list[str]) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise bad(where, "must be an object", tool)
    kind = fields.string(tool, "type", f"{where}.")
    if kind != "function":
        raise bad(f"{where}.type", 'must be "function"', kind)
    function = fields.mapping(tool, "function", f"{where}.")
    if function is None:
        raise bad(f"{where}.function", "is required")
    note_strangers(tool, f"{where}.", _OF_TOOLS, dropped)
    return _function(function, f"{where}.function.", dropped)


def _function(function: dict[str, Any], path: str, dropped: list[str]) -> dict[str, Any]:
    name = fields.string(function, "name", path)
    if name is None or not _NAME.fullmatch(name):
        raise bad(f"{path}name", "must be 1 to 128 letters, digits, '_', '-', '.' or ':'", name)
    description = fields.string(function, "description", path)
    parameters = fields.mapping(function, "parameters", path)
    strict = bool(fields.boolean(function, "strict", path))
    if parameters is not None:
        fields.check_depth(parameters, f"{path}parameters")
    note_strangers(function, path, _OF_FUNCTIONS, dropped)
    return conversation.function(name, description, parameters, strict)
