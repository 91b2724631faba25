"""How models write tool calls: a table of conventions, and which of them a model follows.

A convention is one entry: the marks around a call, the reader of what is between, and the grammar that makes a model
write nothing else. To add one, add a reader if its form is new, a rule in `worker.text.call_grammar`, and a line here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from worker.text.call_readers import CallReader, Choosing, HeadedCalls, JsonCalls, MakeReader, Schemas, Sink
from worker.text.errors import PromptError
from worker.text.marks import Mark
from worker.text.tagged_calls import FunctionTags, Pairs
from worker.text.vocabulary import Vocabulary

_BARE_REACH = 64  # characters, white space included, after which an answer has shown what it is
SEPARATOR = "<｜tool▁sep｜>"
ARGUMENT = "<|tool_call_argument_begin|>"

Form = Literal["json", "tags", "pairs", "array", "named", "bare", "deepseek", "deepseek_fenced", "kimi"]
"""How a call is written; see `worker.text.call_grammar`."""


@dataclass(frozen=True)
class Convention:
    """One way to write tool calls."""

    name: str
    opening: str
    closing: str  # empty: the call ends where the next one opens, or with the answer
    read: MakeReader
    form: Form
    bare: tuple[str, ...] = ()  # an answer that begins so, white space aside, is a call without marker
    call_ids: Literal["openai", "mistral"] = "openai"
    frame: tuple[str, str] = ("", "")  # marks around all calls
    hints: tuple[str, ...] = ()  # further text that a template of this convention, and of no earlier one, has

    def marks(self) -> list[Mark]:
        """Everything that sets calls apart."""
        marks = [Mark("call_open", self.opening)]
        if self.closing:
            marks.append(Mark("call_close", self.closing))
        return [*marks, *(Mark("call_frame", text) for text in self.frame if text)]

    def begins_bare(self, text: str) -> bool | None:
        """Whether an answer that begins with `text` is a call without marker; None: too early to say."""
        compact = "".join(text[:_BARE_REACH].split())
        if any(compact.startswith(start) for start in self.bare):
            return True
        if len(text) >= _BARE_REACH:
            return False
        return None if any(start.startswith(compact) for start in self.bare) else False


def _tagged(sink: Sink, schemas: Schemas, opening: str) -> CallReader:
    """Fine-tunes mix the forms that stand in the same marks, so the body decides."""

    def choose(start: str) -> CallReader | None:
        if start[0] in "{[":
            return JsonCalls(sink, schemas, opening)
        if start.startswith("<function="):
            return FunctionTags(sink, schemas, opening)
        return None if "<function=".startswith(start) else Pairs(sink, schemas, opening)

    return Choosing(choose, lambda: Pairs(sink, schemas, opening))


def _json(sink: Sink, schemas: Schemas, opening: str) -> CallReader:
    return JsonCalls(sink, schemas, opening)


def _bare(sink: Sink, schemas: Schemas, opening: str) -> CallReader:
    return JsonCalls(sink, schemas, opening, only_offered=not opening)


_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
_DEEPSEEK = re.compile(rf"\s*(?:function{SEPARATOR}([\w.-]+)\s*(?:```(?:json)?\s*)?|([\w.-]+){SEPARATOR}\s*)(?=\{{)")
_KIMI = re.compile(rf"\s*(?:functions\.)?([\w.-]+):\d+\s*{re.escape(ARGUMENT)}\s*(?=\{{)")


def _mistral(sink: Sink, schemas: Schemas, opening: str) -> CallReader:
    def choose(start: str) -> CallReader:
        return JsonCalls(sink, schemas, opening) if start[0] in "{[" else HeadedCalls(sink, opening, _NAMED)

    return Choosing(choose, lambda: HeadedCalls(sink, opening, _NAMED))


def _deepseek(sink: Sink, schemas: Schemas, opening: str) -> CallReader:
    return HeadedCalls(sink, opening, _DEEPSEEK)


def _kimi(sink: Sink, schemas: Schemas, opening: str) -> CallReader:
    return HeadedCalls(sink, opening, _KIMI)


HERMES = Convention("hermes", "<tool_call>", "</tool_call>", _tagged, "json")

DEEPSEEK = Convention(
    "deepseek_v31",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    _deepseek,
    "deepseek",
    frame=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)

CONVENTIONS: tuple[Convention, ...] = (
    replace(HERMES, name="qwen_xml", form="tags", hints=("<function=", "<parameter=")),  # Qwen3-Coder, Nemotron 3
    replace(HERMES, name="glm", form="pairs", hints=("<arg_key>", "<arg_value>")),  # GLM-4.5
    HERMES,  # Qwen, Hermes, SmolLM3 and many fine-tunes
    Convention("mistral_named", "[TOOL_CALLS]", "", _mistral, "named", call_ids="mistral", hints=("[ARGS]",)),
    Convention("mistral", "[TOOL_CALLS]", "", _mistral, "array", call_ids="mistral"),
    replace(DEEPSEEK, name="deepseek", form="deepseek_fenced", hints=("```json",)),  # V3, R1
    DEEPSEEK,
    Convention(
        "kimi",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        _kimi,
        "kimi",
        frame=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    Convention("phi4", "<|tool_call|>", "<|/tool_call|>", _json, "array"),
    Convention("granite", "<|tool_call|>", "", _json, "array"),
    Convention("llama3", "<|python_tag|>", "", _bare, "bare", bare=('{"name":', '{"type":"function"', '{"function":')),
)


class UnknownConvention(ValueError):
    """The catalogue declares a convention that there is not. Remedy: one of those in the message."""

    def __init__(self, name: str) -> None:
        super().__init__(f"tool_convention {name!r} is unknown; known: {', '.join(names())}")


def names() -> list[str]:
    """What a catalogue may declare; gpt-oss is recognised by its tokens and needs no declaration."""
    return [convention.name for convention in CONVENTIONS]


def named(name: str) -> Convention:
    """The convention that a catalogue declares. Raises `UnknownConvention`."""
    for convention in CONVENTIONS:
        if convention.name == name:
            return convention
    raise UnknownConvention(name)


def detect(vocabulary: Vocabulary, template: str) -> Convention:
    """Return the convention whose marks the template writes, else the one that is in the vocabulary.

    Where neither shows any, Hermes: the commonest among fine-tunes that were taught to call tools in plain text.
    """
    return (
        _first(convention for convention in CONVENTIONS if _all_in(convention, template))
        or _first(convention for convention in CONVENTIONS if _all_known(convention, vocabulary))
        or HERMES
    )


def schemas_of(tools: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """Return the parameter schemas of OpenAI function tools, by tool. Raises `PromptError`."""
    schemas: dict[str, dict[str, object]] = {}
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise PromptError(f"tools[{index}] has no function name.", "tools")
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        schemas[name] = properties if isinstance(properties, dict) else {}
    return schemas


def _first(conventions: Iterable[Convention]) -> Convention | None:
    return next(iter(conventions), None)


def _all_in(convention: Convention, template: str) -> bool:
    return all(text in template for text in (*(mark.text for mark in convention.marks()), *convention.hints))


def _all_known(convention: Convention, vocabulary: Vocabulary) -> bool:
    return not convention.hints and all(
        vocabulary.id_of(mark.text) is not None for mark in convention.marks() if mark.role != "call_frame"
    )
