"""What GET /health says: always answered while the process serves, and truthful about the rest."""

from typing import Any

from gateway.catalogue import Catalogue
from shared.bus import Bus
from shared.fleet import Fleet


class Health:
    """The state of this gateway and of what it sees of the fleet."""

    def __init__(self, gateway_id: str, bus: Bus, fleet: Fleet, catalogue: Catalogue) -> None:
        self._id = gateway_id
        self._bus = bus
        self._fleet = fleet
        self._catalogue = catalogue

    def report(self) -> dict[str, Any]:
        """status is ok when the bus is connected and every model that should be loaded has a ready replica."""
        states = {info.id: info.state for info in self._catalogue.listing()}
        wanted = {intent.model for intent in self._fleet.intents.values() if intent.want == "loaded"}
        missing = sorted(model for model in wanted if states.get(model) != "ready")
        is_connected = self._bus.is_connected
        return {
            "status": "ok" if is_connected and not missing else "degraded",
            "gateway": self._id,
            "bus": {"connected": is_connected},
            "workers": len(self._fleet.workers),
            "replicas_ready": sum(1 for one in self._fleet.replicas.values() if one.state == "ready"),
            "models": states,
            "missing": missing,
        }
