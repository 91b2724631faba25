"""Token ids of prompts, remembered piece by piece, so that what a conversation repeats is tokenised once.

An agent sends its whole conversation with each turn. Tokenising 250,000 characters takes a quarter of a second; finding
them again takes a few milliseconds.

A prompt is cut in front of the special tokens that its chat template writes. Tokenisers find special tokens before
anything else and treat what lies between them each on its own, so the pieces' ids are the prompt's. A special token
serves for cutting only where that is certain (see `_can_cut`) and a trial at the start agrees.
"""

import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable

from tokenizers import AddedToken

from worker.text.vocabulary import Vocabulary

MAX_CHARACTERS = 8 << 20  # of all pieces; their text and ids take some 20 MB


class Pieces:
    """Encodes prompts of one chat template. For use by several threads."""

    def __init__(self, vocabulary: Vocabulary, template: str, *, max_characters: int = MAX_CHARACTERS) -> None:
        """`template`: its source; the special tokens in it are where prompts are cut."""
        self._vocabulary = vocabulary
        self._max_characters = max_characters
        self._ids_of: OrderedDict[str, array[int]] = OrderedDict()  # by piece, the longest unused first
        self._num_characters = 0
        self._lock = threading.Lock()
        added = vocabulary.added_tokens
        self.marks = [one.content for one in added if one.content in template and _can_cut(one, added)]
        self._places = re.compile("|".join(map(re.escape, self.marks)))
        if self.marks and not self._agrees():
            self.marks = []

    def encode(self, text: str) -> list[int]:
        """The ids of a whole prompt, as `Vocabulary.encode` without added special tokens has them."""
        if not self.marks:
            return self._vocabulary.encode(text, add_special_tokens=False)
        ids: list[int] = []
        start = 0
        for found in self._places.finditer(text):
            if found.start() > start:
                ids += self._ids(text[start : found.start()])
                start = found.start()
        if start < len(text):
            ids += self._ids(text[start:])
        return ids

    def _ids(self, piece: str) -> "array[int]":
        with self._lock:
            known = self._ids_of.get(piece)
            if known is not None:
                self._ids_of.move_to_end(piece)
                return known
        found = array("I", self._vocabulary.encode(piece, add_special_tokens=False))
        with self._lock:
            if piece not in self._ids_of:
                self._ids_of[piece] = found
                self._num_characters += len(piece)
            while self._num_characters > self._max_characters:
                oldest, _ = self._ids_of.popitem(last=False)
                self._num_characters -= len(oldest)
        return found

    def _agrees(self) -> bool:
        """Whether a text with all marks has the same ids in pieces and as a whole."""
        text = "".join(f"a b{mark} c\n{mark}{mark}user\n\nd {mark}\n e  " for mark in self.marks)
        return self.encode(text) == self._vocabulary.encode(text, add_special_tokens=False)


def _can_cut(mark: AddedToken, added: Iterable[AddedToken]) -> bool:
    """Whether the text in front of every occurrence of `mark` is tokenised without a look at it or behind it.

    1. It is found in the text as it is, wherever it stands, and takes no white space before it along.
    2. No added token can cover its beginning, nor begin where it does.
    """
    name = mark.content
    if not (mark.special and name) or mark.normalized or mark.lstrip or mark.rstrip or mark.single_word:
        return False
    if name[0].isalnum() or name[0].isspace() or name[0] == "_":
        return False
    for other in (one.content for one in added):
        if other != name and other.startswith(name):
            return False
        tails = (other[start:] for start in range(1, len(other)))
        if any(tail.startswith(name) or name.startswith(tail) for tail in tails):
            return False
    return True
