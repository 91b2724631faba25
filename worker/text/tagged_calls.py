"""What stands in `<tool_call>…</tool_call>` where it is no JSON: function tags (Qwen-Coder) and pairs (GLM).

Parameters stand there without JSON quotes. Those that can only be strings are passed on as they grow; the others, when
they are whole and their type is known.
"""

import json
import re
from collections.abc import Callable

from worker.text.call_readers import Schemas, Sink
from worker.text.coerce import Properties, coerce, dump, is_text
from worker.text.needles import Needles

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_ENDS = ("</parameter>", "<parameter=", "</function>")
_END_OF_VALUE = Needles(_ENDS)
_TAG_REACH = 300  # characters within which a tag must be complete


class FunctionTags:
    """`<function=NAME><parameter=KEY>VALUE</parameter>…</function>`, one or several."""

    def __init__(self, sink: Sink, schemas: Schemas, opening: str) -> None:
        self._sink = sink
        self._schemas = schemas
        self._raw = opening  # until the first call
        self._has_called = False
        self._held = ""
        self._state: Callable[[str], str | None] = self._outside
        self._types: Properties = {}
        self._num_parameters = 0
        self._key = ""
        self._value: list[str] | None = None  # of a parameter that waits to be whole; None: a string, streamed
        self._is_first = True  # of the characters of a value

    def feed(self, text: str) -> None:
        """Take more of the body."""
        text = self._held + text
        self._held = ""
        while text:
            rest = self._state(text)
            if rest is None:
                return
            text = rest

    def close(self, closing: str) -> None:
        """The body is over: what is open is closed, what is no call is text."""
        if self._state in (self._outside, self._lost):
            text = self._held.rstrip() if self._has_called else self._raw + self._held + closing
            if text:
                self._sink.verbatim(text)
            return
        if self._state == self._in_value:
            self._grow(self._held.removesuffix("\n"))
            self._end_value()
        self._end_function()

    def _outside(self, text: str) -> str | None:
        found = _FUNCTION.match(text)
        if found is None:
            if len(text.lstrip()) < _TAG_REACH and _may_become("<function=", text):
                self._held = text
                return None
            self._sink.verbatim(self._raw + text)
            self._raw, self._state = "", self._lost
            return None
        name = found[1].strip()
        self._sink.begin_call(name)
        self._sink.arguments("{")
        self._raw, self._has_called = "", True
        self._types, self._num_parameters = self._schemas.get(name, {}), 0
        self._state = self._inside
        return text[found.end() :]

    def _inside(self, text: str) -> str | None:
        found = _PARAMETER.match(text)
        if found:
            self._key = found[1].strip()
            self._value = None if is_text(self._types.get(self._key)) else []
            self._is_first = True
            if self._value is None:
                self._sink.arguments(f'{self._comma()}{dump(self._key)}: "')
            self._state = self._in_value
            return text[found.end() :]
        start = text.lstrip()
        if start.startswith("</function>"):
            self._end_function()
            return start[len("</function>") :]
        if not start or (
            len(start) < _TAG_REACH and (_may_become("<parameter=", text) or "</function>".startswith(start))
        ):
            self._held = text
            return None
        found_at = text.find("<", len(text) - len(start) + 1)
        cut = len(text) if found_at < 0 else found_at
        lost = text[:cut].rstrip()  # it belongs to no parameter
        self._sink.verbatim(lost)
        return text[len(lost) :] or None

    def _in_value(self, text: str) -> str | None:
        found = _END_OF_VALUE.find(text)
        if found:
            start, needle = found
            self._grow(text[:start].removesuffix("\n"))
            self._end_value()
            return text[start + (len(needle) if needle == "</parameter>" else 0) :]
        keep = _END_OF_VALUE.held(text)
        if text[: len(text) - keep].endswith("\n"):
            keep += 1
        self._grow(text[: len(text) - keep])
        self._held = text[len(text) - keep :]
        return None

    def _lost(self, text: str) -> str | None:
        self._sink.verbatim(text)
        return None

    def _grow(self, text: str) -> None:
        if self._is_first and text:
            self._is_first = False
            text = text.removeprefix("\n")
        if not text:
            return
        if self._value is None:
            self._sink.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def _end_value(self) -> None:
        if self._value is None:
            self._sink.arguments('"')
        else:
            value = coerce("".join(self._value), self._types.get(self._key))
            self._sink.arguments(f"{self._comma()}{dump(self._key)}: {dump(value)}")
        self._num_parameters += 1
        self._state = self._inside

    def _end_function(self) -> None:
        self._sink.arguments("}")
        self._sink.end_call()
        self._state = self._outside

    def _comma(self) -> str:
        return ", " if self._num_parameters else ""


class Pairs:
    """`NAME`, then `<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>` for each parameter."""

    _NAME = re.compile(r"\s*([\w.-]+)[ \t]*(?:\n\s*|(?=<arg_key>))")
    _PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)

    def __init__(self, sink: Sink, schemas: Schemas, opening: str) -> None:
        self._sink = sink
        self._schemas = schemas
        self._raw = opening
        self._held = ""
        self._name = ""
        self._num_parameters = 0

    def feed(self, text: str) -> None:
        """Take more of the body."""
        self._held += text
        if "</arg_value>" not in self._held:
            return
        name = self._NAME.match(self._held) if not self._name else None
        if not self._name:
            if name is None or not self._PAIR.match(self._held, name.end()):
                return
            self._begin(name[1], name.end())
        types = self._schemas.get(self._name, {})
        while pair := self._PAIR.match(self._held):
            key = pair[1].strip()
            comma = ", " if self._num_parameters else ""
            self._sink.arguments(f"{comma}{dump(key)}: {dump(coerce(pair[2], types.get(key)))}")
            self._num_parameters += 1
            self._held = self._held[pair.end() :]

    def close(self, closing: str) -> None:
        """The body is over. A name alone is a call if it is a tool's."""
        if not self._name and self._held.strip() in self._schemas:
            self._begin(self._held.strip(), len(self._held))
        if not self._name:
            self._sink.verbatim(self._raw + self._held + closing)
            return
        self._sink.arguments("}")
        self._sink.end_call()
        if self._held.strip():
            self._sink.verbatim(self._held)

    def _begin(self, name: str, end: int) -> None:
        self._name = name
        self._held = self._held[end:]
        self._sink.begin_call(name)
        self._sink.arguments("{")


def _may_become(tag: str, text: str) -> bool:
    """Whether `text`, white space aside, is the beginning of a tag that is not complete."""
    start = text.lstrip()
    return tag.startswith(start) or (start.startswith(tag) and ">" not in start and "\n" not in start)
