"""The images of one job, as scheduler, prefix index and model see them. No tensors here."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from worker.engine.vision.positions import Positions
from worker.protocol import Image

_WORD = 8  # bytes of a digest that stand for one token


class Known(Protocol):
    """Who knows the embeddings of images."""

    def __contains__(self, digest: bytes, /) -> bool: ...


@dataclass(slots=True)
class Seen:
    """An image of a prompt, and what the tower will read of it; that is let go once the tower has."""

    image: Image
    pixels: Any = None

    @property
    def start(self) -> int:
        """Its first token's position."""
        return self.image.runs[0][0]

    @property
    def num_tokens(self) -> int:
        """Tokens that are the image's."""
        return sum(count for _, count in self.image.runs)


class Glance:
    """How many tokens of images a step may still see for the first time. One image is always allowed."""

    def __init__(self, num_tokens: int) -> None:
        self._left = num_tokens
        self._taken: set[bytes] = set()

    def take(self, digest: bytes, num_tokens: int) -> bool:
        """Whether this image may be seen in this step too."""
        if digest in self._taken:
            return True
        if self._taken and num_tokens > self._left:
            return False
        self._taken.add(digest)
        self._left -= num_tokens
        return True


class Visual:
    """The images of a prompt, in order, with the positions of its tokens where these have three parts."""

    def __init__(self, seen: list[Seen], positions: Positions | None, known: Known) -> None:
        self.seen = sorted(seen, key=lambda one: one.start)
        self.positions = positions
        self._known = known
        self._starts = [one.start for one in self.seen]
        self._overlay = [
            (first + at, word)
            for one in self.seen
            for first, count, offset in _runs(one.image)
            for at, word in enumerate(_words(one.image.digest, offset, count))
        ]

    def overlaps(self, start: int, stop: int) -> Iterator[tuple[Seen, int, int, int]]:
        """The parts of images within [start, stop): whose, from where to where, and which of its tokens is first."""
        index = max(0, bisect_right(self._starts, start) - 1)
        for one in self.seen[index:]:
            if one.start >= stop:
                return
            for first, count, offset in _runs(one.image):
                low, high = max(first, start), min(first + count, stop)
                if low < high:
                    yield one, low, high, offset + low - first

    def unknown(self, start: int, stop: int) -> list[Seen]:
        """The images within [start, stop) whose embeddings have to be computed."""
        found: dict[bytes, Seen] = {}
        for one, *_ in self.overlaps(start, stop):
            if one.image.digest not in self._known:
                found.setdefault(one.image.digest, one)
        return list(found.values())

    def reach(self, start: int, stop: int, glance: Glance) -> int:
        """How far a step may compute from `start` on: up to the first image that there is no room for in it."""
        for one in self.unknown(start, stop):
            if not glance.take(one.image.digest, one.num_tokens):
                return max(start, one.start)
        return stop

    def keys(self, ids: list[int]) -> list[int]:
        """Tokens as the prefix index is to tell them apart: those of an image are named by what it shows."""
        keys = list(ids)
        for position, word in self._overlay:
            keys[position] = word
        return keys


def _runs(image: Image) -> Iterator[tuple[int, int, int]]:
    """First position, how many, and which of the image's tokens the first is."""
    offset = 0
    for first, count in image.runs:
        yield first, count, offset
        offset += count


def _words(digest: bytes, offset: int, count: int) -> Iterator[int]:
    """Numbers below zero, which no token has: the parts of a digest in turn."""
    words = [int.from_bytes(digest[at : at + _WORD], "little") >> 1 for at in range(0, len(digest), _WORD)]
    for index in range(offset, offset + count):
        yield -1 - words[index % len(words)]
