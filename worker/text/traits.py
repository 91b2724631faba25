"""Finding out by trial what shape of messages a chat template takes.

Templates do not declare it, and reading their source for it guesses wrong (macros, indirect loops). A handful of small
conversations rendered at load time answers each question with evidence.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from worker.text.conversation import Shape, normalise

# Nothing a template would write on its own, and not a tool name in use.
_ONE, _TWO = "plexusprobeone", "plexusprobetwo"

_DEVELOPER = re.compile(r"""['"]developer['"]""")  # compared with a role
_SHORT_IDS = re.compile(r"length (!= )?9\b")  # Mistral's templates refuse other tool call ids

Render = Callable[[list[dict[str, Any]]], str]
"""Renders messages; raises anything where the template does."""


def probe(render: Render, source: str) -> Shape:
    """Return the shape that `render`, the template with this `source`, takes."""
    shape = Shape(developer=bool(_DEVELOPER.search(source)), short_ids=bool(_SHORT_IDS.search(source)))
    shape = _probe_content(render, shape)
    shape = _probe_system(render, shape)
    return _probe_tool_call(render, shape)


def takes_images(render: Render, shape: Shape, mark: str) -> bool:
    """Whether a template puts `mark` once where a message has an image, and keeps the text beside it."""
    message = _user([{"type": "image"}, {"type": "text", "text": _ONE}])
    text = _try(render, normalise(message, replace(shape, images=True)))
    return text.count(mark) == 1 and _ONE in text


def shows_tools(render: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]) -> bool:
    """Whether a template puts tools into the prompt. One that fails with them is taken to know what they are."""
    try:
        return _ONE in render(_user("?"), [_TOOL])
    except Exception:  # a template may fail in any way that Python can
        return True


def _try(render: Render, messages: list[dict[str, Any]]) -> str:
    try:
        return render(messages)
    except Exception:  # a template may fail in any way that Python can
        return ""


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def _probe_content(render: Render, shape: Shape) -> Shape:
    """Text wherever text works: it is one shape for all. Its joiner is what the template puts between parts."""
    parts = _try(render, _user([{"type": "text", "text": _ONE}, {"type": "text", "text": _TWO}]))
    if _ONE not in _try(render, _user(_ONE)):
        return replace(shape, content="parts", joiner="") if _ONE in parts else shape
    if _ONE in parts and _TWO in parts:
        joiner = parts.partition(_ONE)[2].partition(_TWO)[0]
        # A template that only prints the list's repr joins nothing.
        if _try(render, _user(_ONE + joiner + _TWO)) == parts:
            return replace(shape, joiner=joiner)
    return shape


def _probe_system(render: Render, shape: Shape) -> Shape:
    """Where a system message is neither refused nor dropped."""
    system = {"role": "system", "content": _ONE}
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    last = {"role": "user", "content": _TWO}
    if _ONE not in _try(render, normalise([system, last], shape)):
        # A template that renders nothing at all says nothing about system messages.
        return replace(shape, system="nowhere") if _TWO in _try(render, normalise([last], shape)) else shape
    for messages in ([system, question, answer, system, last], [system, question, system], [system, system, last]):
        if _try(render, normalise(messages, shape)).count(_ONE) != 2:
            return replace(shape, system="first")
    return shape


def _probe_tool_call(render: Render, shape: Shape) -> Shape:
    """The first combination that renders a tool call with name and arguments, or at least without error."""
    usual = _try(render, _user("?")).count("None")
    rendered = [(candidate, _try(render, normalise(_TOOL_TURN, candidate))) for candidate in _candidates(shape)]
    # A Python None or dictionary in the prompt means that the template was given a type it does not expect.
    sound = [
        (candidate, text)
        for candidate, text in rendered
        if text and text.count("None") <= usual and "{'city'" not in text
    ]
    complete = [candidate for candidate, text in sound if _ONE in text and _TWO in text]
    return next(iter([*complete, *(candidate for candidate, _ in sound)]), shape)


def _candidates(shape: Shape) -> Iterator[Shape]:
    arguments: Literal["object", "text"]
    no_content: Literal["absent", "none", "empty"]
    for arguments in ("object", "text"):
        for no_content in ("absent", "none", "empty"):
            yield replace(shape, arguments=arguments, no_content=no_content)


_TOOL_TURN: list[dict[str, Any]] = [
    {"role": "user", "content": "?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": _ONE, "arguments": {"city": _TWO}}}
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": _ONE, "content": "!"},
]

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _ONE,
        "description": "!",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "!"}},
            "required": [],
        },
    },
}
