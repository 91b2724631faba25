"""What may be asked for, and how each model stands in the fleet."""

import difflib
from dataclasses import dataclass, field
from typing import Literal

from gateway.errors import ModelNotFound
from shared.fleet import Fleet
from shared.records import ModelRecord, ReplicaRecord

ModelState = Literal["ready", "loading", "draining", "failed", "cold"]
_ORDER: tuple[Literal["ready", "loading", "draining", "failed"], ...] = ("ready", "loading", "draining", "failed")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as clients are told of it."""

    id: str
    created_s: float
    state: ModelState
    context_limit: int = 0  # tokens; 0: not known yet
    workers: list[str] = field(default_factory=list)  # where it is ready
    stage: str = ""  # of the load that is furthest
    done_bytes: int = 0
    total_bytes: int = 0
    reason: str = ""  # of a failure


class Catalogue:
    """The models of the plan, with the state of their replicas."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def require(self, model: str) -> ModelRecord:
        """The record of a model. Raises ModelNotFound with names that are nearly the same."""
        record = self._fleet.models.get(model)
        if record is None:
            raise ModelNotFound(model, self.near(model))
        return record

    def near(self, model: str, most: int = 3) -> list[str]:
        """Names of models that `model` may have been meant to be."""
        known = {name.lower(): name for name in self._fleet.models}
        wanted = model.lower()[:256]
        found = difflib.get_close_matches(wanted, known, n=most, cutoff=0.6)
        found += [name for name in known if wanted and wanted in name and name not in found]
        return [known[name] for name in found[:most]]

    def info(self, model: str) -> ModelInfo:
        """How one model stands. Raises ModelNotFound."""
        return _info(self.require(model), self._fleet.replicas_of(model))

    def listing(self) -> list[ModelInfo]:
        """How every model stands, by name."""
        return [self.info(model) for model in sorted(self._fleet.models)]

    def state(self, model: str) -> ModelState:
        """The best state among the replicas of a model."""
        return _state(self._fleet.replicas_of(model))


def _state(replicas: list[ReplicaRecord]) -> ModelState:
    states = {replica.state for replica in replicas}
    return next((state for state in _ORDER if state in states), "cold")


def _info(record: ModelRecord, replicas: list[ReplicaRecord]) -> ModelInfo:
    limits = [replica.context_limit for replica in replicas if replica.context_limit]
    loading = max((one for one in replicas if one.state == "loading"), key=lambda one: one.done_bytes, default=None)
    failed = next((one.reason for one in replicas if one.state == "failed"), "")
    return ModelInfo(
        id=record.id,
        created_s=record.created_s,
        state=_state(replicas),
        context_limit=min(limits, default=record.context_limit),
        workers=sorted({replica.worker for replica in replicas if replica.state == "ready"}),
        stage=loading.stage if loading else "",
        done_bytes=loading.done_bytes if loading else 0,
        total_bytes=loading.total_bytes if loading else 0,
        reason=failed,
    )
