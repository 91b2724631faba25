"""When a rank counts as hung, and what its death means for the replica. Pure."""

from dataclasses import dataclass

from worker.stamp import Reading

HANG_S = 10.0  # nothing shorter is a hang, whatever was predicted
HANG_FACTOR = 20  # times the predicted duration
LOAD_SILENCE_S = 900.0  # a load that says nothing for so long is stuck
MAX_DEATHS = 5
MAX_PAUSE_S = 30.0


def hang(reading: Reading, *, has_work: bool, quiet_s: float) -> str:
    """Why the rank counts as hung, or "". `quiet_s`: since it last spoke or was last given work."""
    if reading.phase in ("prefill", "decode"):
        limit = max(HANG_S, HANG_FACTOR * reading.predicted_s)
        return f"hung in {reading.phase} for {reading.age_s:.0f} s" if reading.age_s > limit else ""
    if reading.phase == "idle":
        deaf = has_work and min(quiet_s, reading.age_s) > HANG_S
        return f"idle for {quiet_s:.0f} s with work to do" if deaf else ""
    return f"silent in {reading.phase} for {quiet_s:.0f} s" if quiet_s > LOAD_SILENCE_S else ""


@dataclass
class Restarts:
    """How often the rank died in a row, that is, without having finished a job in between."""

    deaths: int = 0

    def finished_job(self) -> None:
        """The rank works."""
        self.deaths = 0

    def died(self) -> float | None:
        """Seconds to wait before the next start (0, 1, 2, 4 … 30); None: give up."""
        self.deaths += 1
        if self.deaths >= MAX_DEATHS:
            return None
        return 0.0 if self.deaths == 1 else min(2.0 ** (self.deaths - 2), MAX_PAUSE_S)
