"""Failures of models on this host, and when to try again. Pure."""

from dataclasses import dataclass

from shared.records import Failure, FailureKind

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
STEADY_S = 30.0  # a replica that ran so long starts a new series of failures


@dataclass(frozen=True)
class Lack:
    """Memory that a model needs on a device, and what it could have had."""

    kind: FailureKind
    device: str
    needed_bytes: int
    free_bytes: int


class Failures:
    """The latest failure of each model; times are unix seconds."""

    def __init__(self) -> None:
        self._failures: dict[str, Failure] = {}
        self._attempts: dict[str, int] = {}

    def note(self, model: str, reason: str, now: float, *, ran_s: float = 0.0, lack: Lack | None = None) -> float:
        """A start failed, or a replica ended after `ran_s`. Returns the seconds to wait: 1, 2, 4 … 60."""
        attempts = 1 if ran_s >= STEADY_S else self._attempts.get(model, 0) + 1
        self._attempts[model] = attempts
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(attempts - 1, 10), LONGEST_WAIT_S)
        lack = lack or Lack("", "", 0, 0)
        self._failures[model] = Failure(
            model=model,
            reason=reason,
            at_s=now,
            retry_at_s=now + wait_s,
            attempts=attempts,
            kind=lack.kind,
            device=lack.device,
            needed_bytes=lack.needed_bytes,
            free_bytes=lack.free_bytes,
        )
        return wait_s

    def ready(self, model: str) -> None:
        """It runs: no failure to report. The series goes on if it soon ends again."""
        self._failures.pop(model, None)

    def forget(self, model: str) -> None:
        """It is not assigned any more."""
        self._failures.pop(model, None)
        self._attempts.pop(model, None)

    def all(self) -> list[Failure]:
        """What to report."""
        return list(self._failures.values())
