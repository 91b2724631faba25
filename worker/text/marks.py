"""Marks: the strings by which a model sets reasoning and tool calls apart from what it says."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from worker.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Mark:
    """One marker. `role` is what it does; its `text` is what the vocabulary or the model writes for it."""

    role: Literal["reasoning_open", "reasoning_close", "call_open", "call_close", "call_frame", "channel"]
    text: str


def split_marks(marks: Iterable[Mark], vocabulary: Vocabulary) -> tuple[dict[int, Mark], list[Mark]]:
    """Divide marks into those that are one token each, by id, and those that are ordinary text.

    Where a mark is a token, only that token counts: a model that spells the same characters with other tokens is
    talking about the mark.
    """
    by_id: dict[int, Mark] = {}
    as_text: list[Mark] = []
    for mark in marks:
        id = vocabulary.id_of(mark.text)
        if id is None:
            as_text.append(mark)
        else:
            by_id[id] = mark
    return by_id, as_text
