"""Reading the body of a tool call as it arrives: what stands between the markers, in the forms that models write.

A reader takes text and tells a sink what it makes of it. As long as it has told nothing, the body may still turn out
to be no call, and then all of it is given on as text: nothing is lost, nothing is guessed. Once a call has begun it
stays one: arguments that stop being JSON half-way are passed on as the model wrote them, for a repaired call would be
one that the model did not make.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from worker.text.coerce import JSON, NOT_JSON, Properties, dump
from worker.text.json_object import JsonObject

Schemas = Mapping[str, Properties]
"""JSON schema of each parameter, by tool and parameter name."""


class Sink(Protocol):
    """Where calls go."""

    def begin_call(self, name: str) -> None: ...
    def arguments(self, text: str) -> None: ...
    def end_call(self) -> None: ...
    def verbatim(self, text: str) -> None: ...


class CallReader(Protocol):
    """One body, from the mark that opens it to the mark, or the end, that closes it."""

    def feed(self, text: str) -> None: ...

    def close(self, closing: str) -> None:
        """No more text comes; `closing` is the mark's text, if one was met."""


MakeReader = Callable[[Sink, Schemas, str], CallReader]
"""Makes a reader, given the text of the mark that opened the body."""


class JsonCalls:
    """JSON objects with name and arguments: one, an array, or several with `;` or white space between (Llama 3).

    The order that all templates write, name first, is read as it comes; whatever else is valid, when it is whole.
    """

    _HEAD = re.compile(
        r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?(?:"id"\s*:\s*"[^"\\]*"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")'
        r'\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
    )
    _HEAD_REACH = 1000  # characters within which a head must be complete

    def __init__(self, sink: Sink, schemas: Schemas, opening: str, *, only_offered: bool = False) -> None:
        """`only_offered`: an object that names no tool of `schemas` is no call."""
        self._sink = sink
        self._schemas = schemas if only_offered else None
        self._raw = opening  # all that may yet have to be given on as text
        self._has_called = False
        self._is_text = False  # what comes is no call
        self._in_array = False
        self._item = ""  # the object being read, until its arguments are found
        self._object: JsonObject | None = None  # follows it
        self._arguments: JsonObject | None = None

    def feed(self, text: str) -> None:
        """Take more of the body."""
        if not self._has_called:
            self._raw += text
        while text:
            if self._is_text:
                self._text(text)
                return
            text = self._between(text) if self._object is None else self._inside(text, self._object)

    def close(self, closing: str) -> None:
        """The body is over. What was not called is text, and the marks with it where no call was."""
        if self._arguments is not None and not self._arguments.is_done:
            self._sink.end_call()
        elif self._object is not None and self._has_called and self._arguments is None:
            self._sink.verbatim(self._item)
        elif not self._has_called:
            self._sink.verbatim((self._raw if not self._is_text else "") + closing)

    def _between(self, text: str) -> str:
        """White space, separators and brackets, up to the next object."""
        rest = text.lstrip(" \t\r\n;,") if self._has_called else text.lstrip()
        if not rest:
            return ""
        if rest[0] == "{":
            self._object, self._item, self._arguments = JsonObject(), "", None
            return rest
        if rest[0] == "[" and not self._in_array and not self._has_called:
            self._in_array = True
            return rest[1:]
        if rest[0] == "]" and self._in_array and self._has_called:
            self._in_array = False
            return rest[1:]
        self._give_up(rest)
        return ""

    def _inside(self, text: str, item: JsonObject) -> str:
        taken, rest = item.feed(text)
        if self._arguments is not None:
            self._argue(taken, self._arguments)
        else:
            self._item += taken
            head = self._HEAD.match(self._item) if len(self._item) < self._HEAD_REACH else None
            name = _name(head[1]) if head else None
            if head and name and self._is_offered(name):
                self._begin(name)
                self._arguments = JsonObject()
                self._argue(self._item[head.end() :], self._arguments)
        if item.is_done:
            self._object = None
            if self._arguments is None and not self._whole():
                if self._has_called:
                    self._give_up(self._item + rest)
                else:
                    self._give_up("")
                return ""
        return rest

    def _argue(self, text: str, arguments: JsonObject) -> None:
        was_done = arguments.is_done
        taken, _ = arguments.feed(text)  # further members of the object say nothing
        if taken:
            self._sink.arguments(taken)
        if arguments.is_done and not was_done:
            self._sink.end_call()

    def _whole(self) -> bool:
        """Read an object in another order, or of another kind."""
        try:
            call = _call_of(JSON.decode(self._item))
        except NOT_JSON:
            return False
        if call is None or not self._is_offered(call[0]):
            return False
        self._begin(call[0])
        self._sink.arguments(call[1])
        self._sink.end_call()
        return True

    def _is_offered(self, name: str) -> bool:
        return self._schemas is None or name in self._schemas

    def _begin(self, name: str) -> None:
        self._sink.begin_call(name)
        self._has_called, self._raw = True, ""

    def _give_up(self, rest: str) -> None:
        self._is_text = True
        self._sink.verbatim(rest if self._has_called else self._raw)
        self._raw = ""

    def _text(self, text: str) -> None:
        self._sink.verbatim(text)


class HeadedCalls:
    """A head with the tool's name, then its arguments as a JSON object: Mistral from 2025 on, DeepSeek, Kimi."""

    _REACH = 400  # characters within which a head must be complete

    def __init__(self, sink: Sink, opening: str, head: re.Pattern[str], *, name: str = "") -> None:
        """`head` matches up to the arguments' opening brace; its groups are the name, unless that is known."""
        self._sink = sink
        self._head = head
        self._name = name
        self._raw = opening
        self._body = ""
        self._arguments: JsonObject | None = None
        self._is_text = False

    def feed(self, text: str) -> None:
        """Take more of the body."""
        if self._is_text:
            self._sink.verbatim(text)
            return
        if self._arguments is None:
            self._body += text
            found = self._head.match(self._body)
            if found is None:
                if len(self._body) > self._REACH:
                    self._is_text = True
                    self._sink.verbatim(self._raw + self._body)
                return
            self._sink.begin_call(self._name or next(name for name in found.groups() if name))
            self._arguments, text = JsonObject(), self._body[found.end() :]
        was_done = self._arguments.is_done
        taken, rest = self._arguments.feed(text)
        if taken:
            self._sink.arguments(taken)
        if self._arguments.is_done and not was_done:
            self._sink.end_call()
        if lost := rest.lstrip(" \t\r\n`"):
            self._is_text = True
            self._sink.verbatim(lost)

    def close(self, closing: str) -> None:
        """The body is over."""
        if self._arguments is None:
            self._sink.verbatim((self._raw + self._body if not self._is_text else "") + closing)
        elif self._arguments is not None and not self._arguments.is_done:
            self._sink.end_call()


class Choosing:
    """Waits until a body shows what form it has, then leaves it to the reader of that form."""

    def __init__(self, choose: Callable[[str], CallReader | None], fallback: Callable[[], CallReader]) -> None:
        """`choose` gets the body's beginning, without white space in front; None: too early to say."""
        self._choose = choose
        self._fallback = fallback
        self._held = ""
        self._reader: CallReader | None = None

    def feed(self, text: str) -> None:
        """Take more of the body."""
        if self._reader is None:
            self._held += text
            start = self._held.lstrip()
            self._reader = self._choose(start) if start else None
            if self._reader is None:
                return
            text, self._held = self._held, ""
        self._reader.feed(text)

    def close(self, closing: str) -> None:
        """The body is over."""
        if self._reader is None:
            self._reader = self._fallback()
            self._reader.feed(self._held)
        self._reader.close(closing)


def _name(quoted: str) -> str | None:
    try:
        return str(JSON.decode(quoted))
    except NOT_JSON:
        return None


def _call_of(value: Any) -> tuple[str, str] | None:
    """Name and arguments of a whole object: also OpenAI's own form, and arguments as JSON text."""
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if isinstance(function, dict):
        value = function
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    if isinstance(arguments, str):
        try:
            arguments = JSON.decode(arguments)
        except NOT_JSON:
            return None
    arguments = {} if arguments is None else arguments
    return (name, dump(arguments)) if isinstance(arguments, dict) else None
