"""The waiting inputs of an embedding model: whose turn it is.

As in the line of a chat model, owners take turns by tokens: of those who wait, the owner with the fewest goes next, and
one who comes back starts at the lowest counter of those present. Of equal ones, that one goes whose last turn was
longest ago. An owner's jobs take turns by inputs. Batch jobs go when no other job waits.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Waiting:
    """A job of which inputs wait."""

    key: str
    owner: str
    is_batch: bool
    left: deque[tuple[int, list[int]]]  # (index, ids), the longest first, so that neighbours need little padding


class Turns:
    """Jobs that wait, by class and owner, and what each owner was given."""

    def __init__(self) -> None:
        self._lines: dict[tuple[bool, str], deque[Waiting]] = {}
        self._served: dict[str, int] = {}  # tokens, of owners who have a job here
        self._last_turn: dict[str, int] = {}
        self._num_turns = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Waiting]:
        return iter([job for line in self._lines.values() for job in line])

    def enter(self, job: Waiting) -> None:
        """A new job: it waits."""
        if job.owner not in self._served:
            self._served[job.owner] = min(self._served.values(), default=0)
        self._lines.setdefault((job.is_batch, job.owner), deque()).append(job)

    def leave(self, job: Waiting) -> None:
        """The job waits no more."""
        line = self._lines[job.is_batch, job.owner]
        line.remove(job)
        if not line:
            del self._lines[job.is_batch, job.owner]
            if (not job.is_batch, job.owner) not in self._lines:
                del self._served[job.owner]
                self._last_turn.pop(job.owner, None)

    def first(self) -> Waiting:
        """The job whose turn it is. There must be one."""
        is_batch, owner = min(
            self._lines, key=lambda line: (line[0], self._served[line[1]], self._last_turn.get(line[1], 0))
        )
        return self._lines[is_batch, owner][0]

    def take(self, job: Waiting) -> tuple[int, list[int]]:
        """The next input (index, ids) of the job whose turn it is: the next turn is another's."""
        index, ids = job.left.popleft()
        self._num_turns += 1
        self._last_turn[job.owner] = self._num_turns
        self._served[job.owner] += len(ids)
        if job.left:
            self._lines[job.is_batch, job.owner].rotate(-1)
        else:
            self.leave(job)
        return index, ids
