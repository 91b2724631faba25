"""Grammars of parameters that stand without JSON quotes, as `worker.text.tagged_calls` reads them. Pure.

A string is written as it is; everything else as JSON. What a schema asks for beyond that must survive both ways, so a
keyword that would not is refused by name.
"""

import json
import re
from typing import Any

from llguidance import regex_to_lark

from worker.text.errors import PromptError
from worker.text.lark import Rules, literal
from worker.text.schema import WHITESPACE, resolve

_NOTES = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"),
    *("format", "contentEncoding", "contentMediaType", "nullable", "$schema", "$id", "$defs", "definitions"),
}  # keywords that promise nothing of a value
_OF_STRINGS = {"type", "minLength", "maxLength", "pattern", "enum", "const"}
_FORBIDDEN = r"(?s:.*)(<\/parameter>|<parameter=|<\/function>|<\/?arg_value>|<\/?arg_key>|<\/?tool_call>)(?s:.*)"
_MAX_LENGTH = 1_000_000


class RawValues:
    """Values of one tool's parameters.

    Args:
        root: where the references of their schemas point to.
        param: the field that the schemas came in.
        end: what closes a value, as it stands in a rule.
        ends_in_text: whether that is text, and no token.
    """

    def __init__(self, rules: Rules, root: dict[str, Any], param: str, *, end: str, ends_in_text: bool) -> None:
        self._rules = rules
        self._root = root
        self._param = param
        self._end = end
        self._ends_in_text = ends_in_text

    def value(self, schema: Any) -> str:
        """A value of this schema, and what closes it."""
        return self._rules.one_of(self._alternatives(schema, 0))

    def _alternatives(self, schema: Any, depth: int) -> list[str]:
        schema = resolve(schema, self._root)
        if depth > 8:
            raise PromptError(f"{self._param} has alternatives nested too deeply.", self._param)
        if not isinstance(schema, dict) or not set(schema) - _NOTES:
            return [self._string({})]
        for keyword in ("const", "enum"):
            if keyword in schema:
                values = schema[keyword] if keyword == "enum" else [schema[keyword]]
                if not isinstance(values, list) or not values:
                    raise PromptError(f"{self._param}: enum must be a list of values.", self._param)
                return [f"{literal(v if isinstance(v, str) else json.dumps(v))} {self._end}" for v in values]
        for keyword in ("anyOf", "oneOf", "allOf"):
            branches = schema.get(keyword)
            if branches is None:
                continue
            if extra := sorted(set(schema) - _NOTES - {keyword}):
                self._refuse(extra[0], f"beside {keyword}")
            if not isinstance(branches, list) or not branches or (keyword == "allOf" and len(branches) > 1):
                self._refuse(keyword, "of a parameter")
            return [text for branch in branches for text in self._alternatives(branch, depth + 1)]
        types = schema.get("type")
        if isinstance(types, list):
            return [text for one in types for text in self._alternatives(self._only(schema, one), depth + 1)]
        if types == "string":
            return [self._string(schema)]
        return [f"{self._json(schema)} {self._end}"]

    def _only(self, schema: dict[str, Any], kind: str) -> dict[str, Any]:
        """A schema of several types, for one of them."""
        if kind == "string":
            return {key: value for key, value in schema.items() if key in _OF_STRINGS | _NOTES} | {"type": kind}
        if kind == "null":
            return {"const": None}
        return {key: value for key, value in schema.items() if key not in ("minLength", "maxLength", "pattern")} | {
            "type": kind
        }

    def _json(self, schema: dict[str, Any]) -> str:
        definitions: dict[str, Any] = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
        return self._rules.json({**definitions, **schema, "x-guidance": {"whitespace_pattern": WHITESPACE}})

    def _string(self, schema: dict[str, Any]) -> str:
        """Any text that cannot be taken for markup, with the bounds of its schema."""
        if unknown := sorted(set(schema) - _OF_STRINGS - _NOTES):
            self._refuse(unknown[0], "of a string")
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if not isinstance(low, int) or not (high is None or isinstance(high, int)) or max(low, high or 0) > _MAX_LENGTH:
            self._refuse("minLength", "or maxLength")
        parts = [f"/(?s:.{{{low},{'' if high is None else high}}})/", f"~/{_FORBIDDEN}/"]
        if "pattern" in schema:
            parts.append(f"/{self._pattern(schema['pattern'])}/")
        body = self._rules.add(" & ".join(parts), kind="V")
        # Text that is closed by text is one terminal: where it ends is for the library's lexer to find.
        return self._rules.add(f"{body} {self._end}", kind="C" if self._ends_in_text else "r")

    def _pattern(self, pattern: Any) -> str:
        """A pattern of a schema finds itself anywhere; one of the library's must match from end to end."""
        if not isinstance(pattern, str):
            self._refuse("pattern", "that is no text")
        inner = pattern.removeprefix("^")
        closed = inner.endswith("$") and not inner.endswith("\\$")
        inner = inner[:-1] if closed else inner
        if re.search(r"(?<![\\\[])[\^$]", inner):
            self._refuse("pattern", "with ^ or $ inside")
        start = "" if pattern.startswith("^") else "(?s:.*)"
        return f"{start}({regex_to_lark(inner, 'dw')}){'' if closed else '(?s:.*)'}"

    def _refuse(self, keyword: str, where: str) -> None:
        raise PromptError(
            f"{self._param}: the keyword {keyword!r} {where} cannot be kept in this model's way of writing tool calls.",
            self._param,
        )
