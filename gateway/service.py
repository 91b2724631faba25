"""This gateway as a NATS service: what `nats micro` shows of it."""

from collections import Counter
from typing import Any

from gateway.dispatch import Dispatcher
from shared import names
from shared.bus import Bus
from shared.service import Service

NAME = "plexus-gateway"
DESCRIPTION = "Takes requests over HTTP and makes jobs of them"


def service(bus: Bus, gateway_id: str, host: str, url: str, dispatcher: Dispatcher) -> Service:
    """To be started and closed by whoever serves."""
    return Service(
        bus,
        NAME,
        gateway_id,
        description=DESCRIPTION,
        subject=names.gateway_rpc(gateway_id),
        metadata={"host": host, "url": url},
        stats=lambda: _stats(dispatcher),
    )


def _stats(dispatcher: Dispatcher) -> dict[str, Any]:
    states: Counter[str] = Counter(flight.state for flight in dispatcher.streams.flights.values())
    return {"in_flight": states.total(), **states}
