"""What a client is told while it waits, and afterwards of what it waited for."""

from collections.abc import Sequence

from gateway.catalogue import Catalogue
from gateway.flight import Flight
from gateway.request import Event, Finished, Waiting
from shared.messages import Timings

STATE_HEADER = b"x-plexus-state"
POSITION_HEADER = b"x-plexus-position"
ESTIMATE_HEADER = b"x-plexus-estimate"


def describe(flight: Flight, catalogue: Catalogue) -> Waiting:
    """How a job stands. The estimate is of the load that it waits for, where earlier loads were measured."""
    if flight.replica:
        return Waiting("running" if flight.first_token else flight.phase or "accepted")
    state = catalogue.state(flight.model)
    return Waiting("queued" if state == "ready" else state, flight.ahead, catalogue.load_left_s(flight.model))


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
    return found


def with_load(end: Finished, flight: Flight, catalogue: Catalogue, waited_s: float) -> Finished:
    """`end` with that part of the wait told apart when no replica was ready; the job began `waited_s` ago."""
    timings = end.timings
    load_s = min(catalogue.load_waited_s(flight.replica, waited_s), timings.queue_s)
    if load_s <= 0.0:
        return end
    return Finished(end.usage, Timings(timings.queue_s - load_s, timings.prefill_s, timings.decode_s, load_s))
