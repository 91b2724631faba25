"""How far the clocks of hosts are from ours, by the times in their records. Pure.

Rules compare times that hosts wrote with the time here. A host whose clock is an hour ahead would have models that
have only just begun to serve, for an hour; one that is behind would have none that was used lately.
"""

from shared.records import RECORD_TTL_S

EARLY_S = 1.0  # a record from the future, by more than this
LATE_S = RECORD_TTL_S + 3.0  # or older than any that is still there: the clock is wrong


class Clocks:
    """Offsets of clocks that are wrong. A right one has none, so nothing is bent by the age of its records."""

    def __init__(self) -> None:
        self._ahead: dict[str, float] = {}  # seconds, by worker

    def saw(self, worker: str, at_s: float, now: float) -> None:
        """A record that the worker wrote at `at_s` by its own clock."""
        ahead = at_s - now
        if not at_s or -LATE_S <= ahead <= EARLY_S:
            self._ahead.pop(worker, None)
            return
        before = self._ahead.get(worker, ahead)
        # The record took its time to get here: the larger figure is the truer one, unless the clock was set.
        self._ahead[worker] = max(before, ahead) if abs(before - ahead) < LATE_S else ahead

    def keep(self, workers: set[str]) -> None:
        """Forget all others."""
        self._ahead = {worker: ahead for worker, ahead in self._ahead.items() if worker in workers}

    def is_right(self, worker: str) -> bool:
        """Nothing speaks against its clock."""
        return worker not in self._ahead

    def ours(self, worker: str, at_s: float) -> float:
        """A time of the worker's by our clock; 0, which is no time, stays."""
        return at_s - self._ahead.get(worker, 0.0) if at_s else 0.0
