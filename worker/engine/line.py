"""The waiting line: whose turn it is.

Owners take turns by what they were given: each has a counter of tokens computed for it, and of those who wait, the one
with the lowest goes next, so that an owner with one job does not wait behind thirty of another. An owner who comes back
starts at the lowest counter of those present: nobody saves up. Of equal ones, that one goes whose last turn was longest
ago. Within an owner the first come is the first served.

Batch jobs go when no interactive one waits, and every eighth time anyway.
"""

from bisect import insort
from collections.abc import Iterator

from worker.engine.sequence import Sequence

_BATCH_TURN = 8  # a batch job goes after so many interactive ones that went before it


class Line:
    """Waiting sequences, and the counters of all owners who have sequences, waiting or running."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[bool, str], list[Sequence]] = {}  # by class and owner, in order of arrival
        self._served: dict[str, float] = {}
        self._present: dict[str, int] = {}
        self._last_turn: dict[str, int] = {}
        self._num_turns = 0
        self._num_passed = 0  # interactive ones that went while batch jobs waited
        self.num_waiting = 0  # sequences

    def enter(self, sequence: Sequence) -> None:
        """A new sequence: it waits."""
        owner = sequence.owner
        if owner not in self._present:
            self._served[owner] = min(self._served.values(), default=0.0)
        self._present[owner] = self._present.get(owner, 0) + 1
        self.wait(sequence)

    def leave(self, sequence: Sequence) -> None:
        """The sequence, which does not wait any more, is gone."""
        owner = sequence.owner
        self._present[owner] -= 1
        if not self._present[owner]:
            del self._present[owner], self._served[owner]
            self._last_turn.pop(owner, None)

    def wait(self, sequence: Sequence) -> None:
        """The sequence waits, for the first time or again."""
        line = self._waiting.setdefault((sequence.is_batch, sequence.owner), [])
        insort(line, sequence, key=lambda other: other.arrival)
        self.num_waiting += 1

    def remove(self, sequence: Sequence) -> None:
        """The sequence waits no longer."""
        key = sequence.is_batch, sequence.owner
        self._waiting[key].remove(sequence)
        if not self._waiting[key]:
            del self._waiting[key]
        self.num_waiting -= 1

    def candidates(self) -> Iterator[Sequence]:
        """Those who wait, whose turn it is first. Do not change the line meanwhile."""
        if len(self._waiting) == 1:  # there is nobody to take turns with
            for line in self._waiting.values():
                yield from line
            return
        is_batch_turn = self._num_passed >= _BATCH_TURN
        for is_batch in (True, False) if is_batch_turn else (False, True):
            lines = [(owner, line) for (of_batch, owner), line in self._waiting.items() if of_batch == is_batch]
            lines.sort(key=lambda item: (*self.standing(item[1][0]), item[1][0].arrival))
            for _, line in lines:
                yield from line

    def take(self, sequence: Sequence) -> None:
        """The sequence's turn has come. A batch job that was passed often enough counts as interactive from now on."""
        self.remove(sequence)
        self._num_turns += 1
        self._last_turn[sequence.owner] = self._num_turns
        if sequence.is_batch:
            sequence.is_batch = self._num_passed < _BATCH_TURN
            self._num_passed = 0
        elif any(is_batch for is_batch, _ in self._waiting):
            self._num_passed += 1

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """So many tokens of the sequence are computed in all; what is computed again is not charged again."""
        more = num_tokens - sequence.num_charged
        if more > 0:
            sequence.num_charged = num_tokens
            self._served[sequence.owner] += more

    def standing(self, sequence: Sequence) -> tuple[float, int]:
        """What the sequence's owner was given, and when its last turn was: the lowest goes first."""
        return self._served[sequence.owner], self._last_turn.get(sequence.owner, 0)
