"""Guessing what comes next from what stood there before: the tokens behind the last earlier place like this one."""

_CATCH_UP = 4096  # tokens taken in at a time: a long prompt must not hold up a step
_PAUSE = 32  # tokens
_MAX_PAUSE = 256


class Lookup:
    """Where each run of three tokens stood last in one sequence."""

    __slots__ = ("_last", "_num_known")

    def __init__(self) -> None:
        self._last: dict[tuple[int, int, int], int] = {}  # → the position behind it
        self._num_known = 2  # tokens taken in, or too few to be a run

    def find(self, ids: list[int], count: int) -> tuple[int, ...]:
        """Up to `count` tokens that may follow `ids`, which are those of the last call and perhaps more."""
        length, last = len(ids), self._last
        # All but the last token is taken in: the place at the end must not be found for itself.
        stop = min(length - 1, self._num_known + _CATCH_UP)
        for position in range(self._num_known, stop):
            last[ids[position - 2], ids[position - 1], ids[position]] = position + 1
        self._num_known = max(self._num_known, stop)
        if count <= 0 or length < 3 or stop < length - 1:
            return ()  # nothing is wanted, or not all is taken in yet
        start = last.get((ids[-3], ids[-2], ids[-1]))
        if start is None:
            return ()
        found = ids[start : start + count]
        while len(found) < count:  # what repeats goes on repeating
            found += found[: count - len(found)]
        return tuple(found)


class Record:
    """How guesses of one sequence fared. Old ones count less and less."""

    __slots__ = ("_length", "hits", "is_paused", "lookup", "resume_at", "tries")

    def __init__(self) -> None:
        self.lookup = Lookup()
        self.hits = 0.0
        self.tries = 0.0
        self.is_paused = False  # guessing was found not to pay
        self.resume_at = 0  # tokens of the sequence at which to try again
        self._length = _PAUSE

    @property
    def chance(self) -> float:
        """That a guess is right."""
        return (self.hits + 1) / (self.tries + 2)

    def pause(self, num_ids: int) -> None:
        """Do not guess for a while, longer each time that it had to be so in a row."""
        self._length = min(2 * self._length, _MAX_PAUSE) if self.is_paused else _PAUSE
        self.is_paused = True
        self.resume_at = num_ids + self._length
