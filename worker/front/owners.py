"""Owners that seem to be gone: the server said that nobody listens to their reply subject. Pure.

A gateway that reconnects looks the same for a moment, so nothing is decided within the grace time.
"""

from dataclasses import dataclass

GRACE_S = 3.0


@dataclass
class _Suspect:
    first_s: float
    last_s: float


class GoneOwners:
    """Reply subjects under suspicion."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._suspects: dict[str, _Suspect] = {}

    def note(self, reply: str, now: float) -> None:
        """Nobody listened to `reply` just now."""
        suspect = self._suspects.setdefault(reply, _Suspect(now, now))
        suspect.last_s = now

    def due(self, now: float) -> list[tuple[str, bool]]:
        """(reply subject, nobody listened lately either) of each whose grace is over; they leave the list."""
        due = [
            (reply, suspect.last_s - suspect.first_s > self._grace_s / 2)
            for reply, suspect in self._suspects.items()
            if now - suspect.first_s >= self._grace_s
        ]
        for reply, _ in due:
            del self._suspects[reply]
        return due

    def __len__(self) -> int:
        return len(self._suspects)
