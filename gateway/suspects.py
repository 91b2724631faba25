"""Jobs under which replicas died repeatedly: one of them may be what kills, and the others were only there.

A rank that dies takes every job with it, and jobs that are published again together meet again. So a suspect runs
again only while no other suspect of its model does, the one with the fewest losses first. One that does well for a
moment is pardoned and the next may begin; the one that kills is then alone with its losses, and runs out of attempts.
"""

from dataclasses import dataclass, field

from gateway.flight import Flight

PROVEN_S = 1.0  # of new tokens: a job that kills does so at once when it is resumed
PATIENCE_S = 30.0  # at a replica without a token: a long prompt holds up the others no longer than this


@dataclass(slots=True)
class _Lane:
    """The suspects of one model."""

    waiting: dict[str, Flight] = field(default_factory=dict)
    running: Flight | None = None
    attempt: int = 0  # of the running one
    num_tokens: int = 0  # that it had when it began
    held: float = 0.0  # since when a replica has it
    alive: float = 0.0  # since when it brings new tokens


class Suspects:
    """Whose turn it is, by model. Pure."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def may_run(self, flight: Flight, now: float) -> bool:
        """Whether this suspect may be published now. It waits from the first question on."""
        lane = self._lanes.setdefault(flight.model, _Lane())
        lane.waiting[flight.id] = flight
        self._review(lane, now)
        first = min(lane.waiting.values(), key=lambda one: (len(one.losses), one.started, one.id))
        if lane.running is not None or first is not flight:
            return False
        lane.running, lane.attempt, lane.num_tokens = flight, flight.attempt, flight.num_tokens
        lane.held = lane.alive = 0.0
        return True

    def waits_no_more(self, flight: Flight) -> None:
        """It was published, or is over."""
        if lane := self._lanes.get(flight.model):
            lane.waiting.pop(flight.id, None)

    def look(self, now: float) -> None:
        """What the running suspects have come to; several times a second."""
        for model, lane in list(self._lanes.items()):
            self._review(lane, now)
            if lane.running is None and not lane.waiting:
                del self._lanes[model]

    def _review(self, lane: _Lane, now: float) -> None:
        flight = lane.running
        if flight is None:
            return
        # 1. It ended, or was lost again.
        if flight.is_over or flight.attempt != lane.attempt:
            lane.running = None
            return
        # 2. It does well.
        if flight.num_tokens > lane.num_tokens:
            lane.alive = lane.alive or now
            if now - lane.alive >= PROVEN_S:
                flight.pardon()
                lane.running = None
            return
        # 3. It has a replica, which may need long for its prompt.
        if flight.replica:
            lane.held = lane.held or now
            if now - lane.held >= PATIENCE_S:
                lane.running = None
