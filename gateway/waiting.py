"""What a client is told while it waits, and afterwards of what it waited for."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.catalogue import Catalogue
from gateway.flight import Flight
from gateway.request import Event, Finished, Waiting
from shared.messages import Ensured, Timings

STATE_HEADER = b"x-plexus-state"
POSITION_HEADER = b"x-plexus-position"
ESTIMATE_HEADER = b"x-plexus-estimate"
REASON_HEADER = b"x-plexus-reason"
MAX_REASON = 300  # characters
MAX_MODELS = 1000
SMOOTHING = 0.2  # of the mean duration of a model's jobs, by the latest


class Waits:
    """Says of any job how it stands and why; learns from those that end how long they take."""

    def __init__(self, catalogue: Catalogue, word: Callable[[str], Ensured | None]) -> None:
        """`word`: what the placement leader said of a model."""
        self._catalogue = catalogue
        self._word = word
        self._run_s: OrderedDict[str, float] = OrderedDict()  # mean duration of a job, by model

    def ended(self, flight: Flight) -> None:
        """A job is over."""
        if flight.state != "done" or not flight.accepted:
            return
        took = flight.ended - flight.accepted
        before = self._run_s.pop(flight.model, took)
        self._run_s[flight.model] = before + SMOOTHING * (took - before)
        if len(self._run_s) > MAX_MODELS:
            self._run_s.popitem(last=False)

    def of(self, flight: Flight) -> Waiting:
        """How a job stands. The estimate is of the load that it waits for, or of its turn at a busy replica."""
        if flight.replica:
            return Waiting("running" if flight.first_token else flight.phase or "accepted")
        catalogue, model = self._catalogue, flight.model
        state = catalogue.state(model)
        if state == "ready":
            return Waiting("queued", flight.ahead, self._turn_s(flight), catalogue.occupancy(model))
        word = self._word(model)
        reason = catalogue.progress(model) or (word.reason if word else "")
        return Waiting(state, flight.ahead, catalogue.load_left_s(model), " ".join(reason.split())[:MAX_REASON])

    def _turn_s(self, flight: Flight) -> float | None:
        """Seconds to its turn, where jobs go on leaving the busy replicas as they did."""
        running, took = self._catalogue.running(flight.model), self._run_s.get(flight.model)
        return None if flight.ahead is None or not running or took is None else (flight.ahead + 1) * took / running


def headers(events: Sequence[Event]) -> list[tuple[bytes, bytes]]:
    """The headers of a stream that begins with these events: how its job stands at that moment."""
    waiting = next((event for event in events if type(event) is Waiting), None)
    if waiting is None:
        return [(STATE_HEADER, b"running")]
    found = [(STATE_HEADER, waiting.state.encode())]
    if waiting.ahead is not None:
        found.append((POSITION_HEADER, b"%d" % (waiting.ahead + 1)))
    if waiting.estimate_s is not None:
        found.append((ESTIMATE_HEADER, b"%d" % waiting.estimate_s))
    if waiting.reason:
        found.append((REASON_HEADER, waiting.reason.encode("ascii", "replace")))
    return found


def with_load(end: Finished, flight: Flight, catalogue: Catalogue, waited_s: float) -> Finished:
    """`end` with that part of the wait told apart when no replica was ready; the job began `waited_s` ago."""
    timings = end.timings
    load_s = min(catalogue.load_waited_s(flight.replica, waited_s), timings.queue_s)
    if load_s <= 0.0:
        return end
    return Finished(end.usage, Timings(timings.queue_s - load_s, timings.prefill_s, timings.decode_s, load_s))
