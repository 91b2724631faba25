"""Finding fixed strings in a text that arrives in pieces."""

import re
from collections.abc import Sequence


class Needles:
    """A set of strings to look for. The caller keeps the text; this only looks."""

    def __init__(self, needles: Sequence[str]) -> None:
        if not all(needles):
            raise ValueError("an empty string is found everywhere")
        self._needles = tuple(needles)
        self._reach = max((len(needle) for needle in needles), default=1) - 1
        self._starts = re.compile("|".join(sorted({re.escape(needle[0]) for needle in needles})) or "(?!)")

    def find(self, text: str) -> tuple[int, str] | None:
        """Return start and string of the match that ends first; of several that end there, the longest.

        Ending first is what makes the answer independent of how the text was cut into pieces.
        """
        best: tuple[int, int, str] | None = None
        for needle in self._needles:
            start = text.find(needle)
            if start >= 0 and (best is None or (start + len(needle), start) < best[:2]):
                best = (start + len(needle), start, needle)
        return best and (best[1], best[2])

    def held(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a string that is still to come."""
        if not self._reach:
            return 0
        tail = text[-self._reach :]
        for match in self._starts.finditer(tail):
            rest = tail[match.start() :]
            if any(needle.startswith(rest) for needle in self._needles):
                return len(rest)
        return 0
