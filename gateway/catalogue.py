"""What may be asked for, and how each model stands in the fleet."""

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from gateway.errors import InvalidRequest, ModelNotFound
from shared import sources
from shared.fleet import Fleet
from shared.records import Failure, ModelRecord, ReplicaRecord, WorkerRecord

ModelState = Literal["ready", "loading", "draining", "failed", "cold"]
Task = Literal["generate", "embed"]
_ORDER: tuple[Literal["ready", "loading", "draining", "failed"], ...] = ("ready", "loading", "draining", "failed")
_OTHER_TASK: dict[Task, str] = {
    "generate": "makes embeddings, and no text: send texts to POST /v1/embeddings, or choose another model",
    "embed": "makes text, and no embeddings: choose an embedding model; GET /v1/models lists them",
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model, or an alias of one, as clients are told of it."""

    id: str
    created_s: float
    state: ModelState | Literal["cannot_fit"]
    alias_of: str = ""  # the model's own id, if this is another name
    aliases: list[str] = field(default_factory=list)
    task: Task = "generate"
    description: str = ""
    context_limit: int = 0  # tokens; 0: not known yet
    capabilities: dict[str, bool] = field(default_factory=dict)  # tools, reasoning, vision; absent: not known yet
    cost: dict[str, float] = field(default_factory=dict)  # per million tokens; empty: not declared
    workers: list[str] = field(default_factory=list)  # where it is ready
    stage: str = ""  # of the load that is furthest
    done_bytes: int = 0
    total_bytes: int = 0
    reason: str = ""  # of a failure


class Catalogue:
    """The models of the plan, with the state of their replicas."""

    def __init__(self, fleet: Fleet, wall: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._wall = wall  # records bear unix times of other hosts

    def require(self, model: str, task: Task | None = None) -> ModelRecord:
        """The record of a model, by its id or one of its aliases.

        Raises ModelNotFound with names that are nearly the same, and InvalidRequest if it is not made for `task`.
        """
        record = self._fleet.models.get(model) or self._of_alias(model)
        if record is None:
            raise ModelNotFound(model, self.near(model))
        if task is not None and record.task != task:
            raise InvalidRequest(f"The model {model!r} {_OTHER_TASK[task]}.", param="model", code="model_not_supported")
        return record

    def near(self, model: str, most: int = 3) -> list[str]:
        """Names of models that `model` may have been meant to be."""
        known = {name.lower(): name for name in [*self._aliases(), *self._fleet.models]}
        wanted = model.lower()[:256]
        found = difflib.get_close_matches(wanted, known, n=most, cutoff=0.6)
        found += [name for name in known if wanted and wanted in name and name not in found]
        return [known[name] for name in found[:most]]

    def info(self, model: str) -> ModelInfo:
        """How one model stands. Raises ModelNotFound."""
        record = self.require(model)
        info = _info(record, self._fleet.replicas_of(record.id), self._cannot_fit(record))
        return info if model == record.id else replace(info, id=model, alias_of=record.id, aliases=[])

    def listing(self) -> list[ModelInfo]:
        """How every model stands, by name; aliases are entries of their own."""
        return [self.info(name) for name in sorted([*self._fleet.models, *self._aliases()])]

    def state(self, model: str) -> ModelState:
        """The best state among the replicas of a model, by its id."""
        return _state(self._fleet.replicas_of(model))

    def progress(self, model: str) -> str:
        """How far the load of a model is that began first, such as ``loading on w1: read 43 %``; empty: none is."""
        loading = [one for one in self._fleet.replicas_of(model) if one.state == "loading"]
        if not loading:
            return ""
        first = min(loading, key=lambda one: one.since_s)
        share = f" {100 * first.done_bytes // first.total_bytes} %" if first.total_bytes else ""
        detail = f": {first.stage}{share}" if first.stage else ""
        return f"loading on {first.worker}{detail}{f' ({first.reason})' if first.reason else ''}"

    def running(self, model: str) -> int:
        """Jobs that run on its replicas now."""
        return sum(one.running for one in self._fleet.replicas_of(model))

    def num_slots(self, model: str) -> int:
        """Jobs that its ready replicas take at once."""
        return sum(one.slots for one in self._fleet.replicas_of(model) if one.state == "ready")

    def occupancy(self, model: str) -> str:
        """Why a job waits although replicas are ready: they are full. Empty when they have room."""
        ready = [one for one in self._fleet.replicas_of(model) if one.state == "ready"]
        taken, slots = sum(one.running + one.waiting for one in ready), sum(one.slots for one in ready)
        where = ", ".join(sorted({one.worker for one in ready}))
        return f"{taken} jobs are before it on {where}" if slots and taken >= slots else ""

    def load_left_s(self, model: str) -> float | None:
        """Seconds until a replica is likely to be ready, by how long earlier loads took; None: ready, or unknown."""
        replicas = self._fleet.replicas_of(model)
        measured = self._fleet.measured.get(model)
        if _state(replicas) == "ready" or measured is None:
            return None
        takes = [one.load_s for one in measured.loads if one.load_s]
        if not takes:
            return None
        since = min((one.since_s for one in replicas if one.state == "loading"), default=0.0)
        mean = sum(takes) / len(takes)
        return min(mean, max(0.0, mean - (self._wall() - since if since else 0.0)))  # clocks may differ

    def load_waited_s(self, replica: str, waited_s: float) -> float:
        """Of a wait that began `waited_s` ago: how long this replica was not ready yet."""
        record = self._fleet.replicas.get(replica)
        if record is None or not record.since_s:
            return 0.0
        return max(0.0, record.since_s + record.load_s - (self._wall() - waited_s))

    def _aliases(self) -> list[str]:
        models = self._fleet.models
        return sorted({alias for record in models.values() for alias in record.aliases if alias not in models})

    def _of_alias(self, name: str) -> ModelRecord | None:
        """The model of an alias. Of several that claim it the first by id has it, so that all gateways agree."""
        models = self._fleet.models
        owners = [model for model, record in models.items() if name in record.aliases]
        return models[min(owners)] if owners else None

    def _cannot_fit(self, record: ModelRecord) -> str:
        """Why no worker can run the model, too small or without its mirror; empty while one might."""
        workers = [one for one in self._fleet.workers.values() if not record.workers or one.name in record.workers]
        reasons = [_lacks_mirror(one, record) or _failed_to_fit(one.failures, record.id) for one in workers]
        return reasons[0] if reasons and all(reasons) else ""


def _lacks_mirror(worker: WorkerRecord, record: ModelRecord) -> str:
    missing = sources.missing(record.source, record.options, worker.mirrors)
    return f"{worker.name} does not know {missing} of its source" if missing else ""


def _failed_to_fit(failures: list[Failure], model: str) -> str:
    return next((one.reason for one in failures if one.model == model and one.kind == "does_not_fit"), "")


def _state(replicas: list[ReplicaRecord]) -> ModelState:
    states = {replica.state for replica in replicas}
    return next((state for state in _ORDER if state in states), "cold")


def _info(record: ModelRecord, replicas: list[ReplicaRecord], cannot_fit: str) -> ModelInfo:
    limits = [replica.context_limit for replica in replicas if replica.context_limit]
    loading = max((one for one in replicas if one.state == "loading"), key=lambda one: one.done_bytes, default=None)
    failed = next((one.reason for one in replicas if one.state == "failed"), "")
    found: dict[str, bool] = {}
    for replica in replicas:
        found |= replica.capabilities
    state = _state(replicas)
    return ModelInfo(
        id=record.id,
        created_s=record.created_s,
        state="cannot_fit" if cannot_fit and state in ("cold", "failed") else state,
        aliases=sorted(record.aliases),
        task=record.task,
        description=record.description,
        context_limit=min(limits, default=record.context_limit),
        capabilities=found | record.capabilities,
        cost=dict(record.cost),
        workers=sorted({replica.worker for replica in replicas if replica.state == "ready"}),
        stage=loading.stage if loading else "",
        done_bytes=loading.done_bytes if loading else 0,
        total_bytes=loading.total_bytes if loading else 0,
        reason=cannot_fit or failed,
    )
