"""How models write tool calls: a table of conventions, and which of them a model follows.

A convention is one entry: the marker that opens a call, the one that closes it, and the reader of what is between.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from worker.text.calls import Reader, read_json, read_mistral, read_tagged
from worker.text.marks import Mark
from worker.text.vocabulary import Vocabulary

_BARE_REACH = 64  # characters, white space included, after which an answer has shown what it is


@dataclass(frozen=True)
class Convention:
    """One way to write tool calls."""

    name: str
    opening: str
    closing: str  # empty: the call ends where the next one opens, or with the answer
    read: Reader
    bare: tuple[str, ...] = ()  # an answer that begins so, white space aside, is a call without marker
    call_ids: Literal["openai", "mistral"] = "openai"

    def marks(self) -> list[Mark]:
        marks = [Mark("call_open", self.opening)]
        return [*marks, Mark("call_close", self.closing)] if self.closing else marks

    def begins_bare(self, text: str) -> bool | None:
        """Whether an answer that begins with `text` is a call without marker; None: too early to say."""
        compact = "".join(text[:_BARE_REACH].split())
        if any(compact.startswith(start) for start in self.bare):
            return True
        if len(text) >= _BARE_REACH:
            return False
        return None if any(start.startswith(compact) for start in self.bare) else False


HERMES = Convention("hermes", "<tool_call>", "</tool_call>", read_tagged)

CONVENTIONS: tuple[Convention, ...] = (
    HERMES,  # Qwen, Hermes, GLM-4.5, SmolLM3 and many fine-tunes
    Convention("mistral", "[TOOL_CALLS]", "", read_mistral, call_ids="mistral"),
    Convention("phi4", "<|tool_call|>", "<|/tool_call|>", read_json),
    Convention("granite", "<|tool_call|>", "", read_json),
    Convention("llama3", "<|python_tag|>", "", read_json, bare=('{"name":', '{"type":"function"')),
)


def detect(vocabulary: Vocabulary, template: str) -> Convention:
    """Return the convention whose marker the template writes, else the one that is in the vocabulary.

    Where neither shows any, Hermes: the commonest among fine-tunes that were taught to call tools in plain text.
    """
    return (
        _first(convention for convention in CONVENTIONS if _all_in(convention, template))
        or _first(convention for convention in CONVENTIONS if _all_known(convention, vocabulary))
        or HERMES
    )


def _first(conventions: Iterable[Convention]) -> Convention | None:
    return next(iter(conventions), None)


def _all_in(convention: Convention, template: str) -> bool:
    return all(mark.text in template for mark in convention.marks())


def _all_known(convention: Convention, vocabulary: Vocabulary) -> bool:
    return all(vocabulary.id_of(mark.text) is not None for mark in convention.marks())
