"""Tools of a messages body: which the model is told of, which it may call, and which it must.

A tool with `defer_loading` is not in the list that stands before the conversation. It is shown where a tool result
refers to it, so that the beginning of the prompt stays as it was and keeps its place in the cache. Tools that
Anthropic's servers run, or whose schemas only its models know, cannot be served and are left out: clients send them
along with their own and go on without.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.dialects import conversation, fields
from gateway.dialects.fields import bad
from gateway.dialects.parameters import note_strangers

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_WITHOUT_EFFECT = frozenset(  # of a tool; the rest of the unknown ones are told to the client
    ("type", "cache_control", "eager_input_streaming", "allowed_callers", "input_examples")
)
_KNOWN = _WITHOUT_EFFECT | {"name", "description", "input_schema", "defer_loading", "strict"}
_OF_CHOICE = frozenset(("type", "disable_parallel_tool_use"))


@dataclass(slots=True)
class Tools:
    """The tools of one request."""

    listed: list[dict[str, Any]] = field(default_factory=list)  # before the conversation
    deferred: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name
    shown: list[str] = field(default_factory=list)  # of the deferred: those that the conversation refers to
    dropped: list[str] = field(default_factory=list)  # paths of what has no effect

    def show(self, name: str) -> str:
        """The text in place of a reference to a tool."""
        tool = self.deferred.get(name)
        if tool is None:
            return f"Tool {name} is available."
        if name not in self.shown:
            self.shown.append(name)
        return orjson.dumps(tool).decode()

    def shown_tools(self) -> list[dict[str, Any]]:
        """The deferred tools that may be called, in the order in which they were shown."""
        return [self.deferred[name] for name in self.shown]


def read(body: dict[str, Any]) -> Tools:
    """The tools of a body. Raises InvalidRequest naming the field."""
    tools = Tools()
    seen: set[str] = set()
    for index, one in enumerate(fields.array(body, "tools", MAX_TOOLS) or []):
        where = f"tools[{index}]"
        if not isinstance(one, dict):
            raise bad(where, "must be an object", one)
        if (fields.string(one, "type", f"{where}.") or "custom") != "custom":
            tools.dropped.append(where)
            continue
        tool = _tool(one, where, tools)
        name = tool["function"]["name"]
        if name in seen:
            raise bad(f"{where}.name", "must be unique", name)
        seen.add(name)
        if fields.boolean(one, "defer_loading", f"{where}."):
            tools.deferred[name] = tool
        else:
            tools.listed.append(tool)
    if not tools.listed:  # without one in the list, templates do not tell how tools are called
        tools.listed, tools.deferred = list(tools.deferred.values()), {}
    return tools


def choose(body: dict[str, Any], tools: Tools) -> tuple[str, bool]:
    """(`Prompt.tool_choice`, whether several calls are allowed). May move a deferred tool into the list.

    Raises InvalidRequest naming the field.
    """
    choice = fields.mapping(body, "tool_choice")
    if choice is None:
        return "auto", True
    where = "tool_choice."
    kind = fields.string(choice, "type", where)
    note_strangers(choice, where, _OF_CHOICE | {"name"} if kind == "tool" else _OF_CHOICE, tools.dropped)
    parallel = not fields.boolean(choice, "disable_parallel_tool_use", where)
    if kind in ("auto", "none"):
        return kind, parallel
    if kind == "any":
        if not tools.listed and not tools.deferred:
            raise bad("tool_choice.type", 'cannot be "any" without tools that can be served')
        return "required", parallel
    if kind != "tool":
        raise bad("tool_choice.type", 'must be "auto", "any", "tool" or "none"', kind)
    name = fields.string(choice, "name", where)
    if name is None:
        raise bad("tool_choice.name", 'is required with the type "tool"')
    if name in tools.deferred and name not in tools.shown:
        tools.listed.append(tools.deferred.pop(name))
    if name not in tools.shown and name not in {tool["function"]["name"] for tool in tools.listed}:
        raise bad("tool_choice.name", "must be the name of one of the tools", name)
    return f"={name}", parallel


def _tool(tool: dict[str, Any], where: str, tools: Tools) -> dict[str, Any]:
    path = f"{where}."
    name = fields.string(tool, "name", path)
    if name is None or not _NAME.fullmatch(name):
        raise bad(f"{path}name", "must be 1 to 128 letters, digits, '_', '-', '.' or ':'", name)
    schema = fields.mapping(tool, "input_schema", path)
    if schema is None:
        raise bad(f"{path}input_schema", "is required: a JSON schema of type object")
    fields.check_depth(schema, f"{path}input_schema")
    note_strangers(tool, path, _KNOWN, tools.dropped)
    return conversation.function(
        name, fields.string(tool, "description", path), schema, bool(fields.boolean(tool, "strict", path))
    )
