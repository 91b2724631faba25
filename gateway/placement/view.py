"""What a plan depends on, and nothing else: the planner reads no clock, no bus and no memory of its own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from shared.records import (
    Assigned,
    AssignmentRecord,
    DrainRecord,
    Failure,
    IntentRecord,
    MeasuredRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)
from shared.settings import EvictionSettings, PlacementSettings


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """The jobs of one model in the queue."""

    queued: int = 0  # no replica has taken them
    running: int = 0
    since_s: float = 0.0  # unix time when the one that waits longest was published; 0: nobody knows


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model takes on each of its devices, as far as its files tell."""

    minimum_bytes: int  # below this it cannot be loaded
    wanted_bytes: int  # what a worker with room gives it


@dataclass(frozen=True, kw_only=True)
class View:
    """The fleet at one moment. Mappings are by model id, worker name and replica id; times are unix seconds."""

    models: Mapping[str, ModelRecord]
    intents: Mapping[str, IntentRecord]
    workers: Mapping[str, WorkerRecord]
    replicas: Mapping[str, ReplicaRecord]
    wants: Mapping[str, AssignmentRecord]
    drains: Mapping[str, DrainRecord] = field(default_factory=dict)
    measured: Mapping[str, MeasuredRecord] = field(default_factory=dict)
    sizes: Mapping[str, Size] = field(default_factory=dict)
    unsized: Collection[str] = ()  # models whose size is being asked for
    backlog: Mapping[str, Backlog] = field(default_factory=dict)
    asked: Mapping[str, float] = field(default_factory=dict)  # models that a gateway asked for: since when
    served: Mapping[str, float] = field(default_factory=dict)  # when a model last had a ready replica
    lost: Collection[str] = ()  # workers that are not there, and not only not there yet
    failures: Mapping[tuple[str, str], Failure] = field(default_factory=dict)  # (worker, model): retry_at_s is to come
    is_settled: bool = True  # every worker that lives had the time to say so
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    eviction: EvictionSettings = field(default_factory=EvictionSettings)
    now: float = 0.0

    def assigned(self, worker: str, model: str) -> Assigned | None:
        """The standing assignment of a model to a worker."""
        return self._assigned_at.get((worker, model))

    @cached_property
    def _assigned_at(self) -> dict[tuple[str, str], Assigned]:
        return {(worker, one.model.id): one for worker, want in self.wants.items() for one in want.models}

    def leaving(self, worker: str) -> list[Assigned]:
        """What was taken away from a worker that has not said yet that it knows."""
        want, record = self.wants.get(worker), self.workers.get(worker)
        return want.leaving if want and record and record.generation < want.generation else []

    def failing(self, worker: str, model: str) -> Failure | None:
        """The worker's own word on a model that it tries again and again: until it runs there, or is taken away."""
        record = self.workers.get(worker)
        return next((one for one in record.failures if one.model == model), None) if record else None

    def replica(self, worker: str, model: str) -> ReplicaRecord | None:
        """The replica of a model on a worker; of several (one goes, one comes) the latest."""
        return self._replica_at.get((worker, model))

    @cached_property
    def _replica_at(self) -> dict[tuple[str, str], ReplicaRecord]:
        latest = sorted(self.replicas.values(), key=lambda one: (one.since_s, one.id))
        return {(one.worker, one.model): one for one in latest}

    def is_ready(self, model: str) -> bool:
        """Whether any replica of a model takes jobs."""
        return any(one.model == model and one.state == "ready" for one in self.replicas.values())

    def waiting_since(self, model: str) -> float | None:
        """From when on jobs wait for a model to be served at all; None when none do.

        The time counts from its last ready replica: else a long queue would make a model starve the moment that it is
        displaced, and models with long queues would displace each other without serving.
        """
        jobs = self.backlog.get(model, Backlog())
        times = [jobs.since_s or self.now] if jobs.queued else []
        if model in self.asked:
            times.append(self.asked[model])
        return max(min(times), self.served.get(model, 0.0)) if times else None


def variant(model: ModelRecord) -> str:
    """What decides how much memory a model takes; another quantisation is another model in this respect."""
    parts = (model.source, model.revision, model.backend, model.dtype, model.quantization, str(model.context_limit))
    options = ",".join(f"{name}={model.options[name]}" for name in sorted(model.options))
    return "|".join((*parts, str(model.max_slots), str(model.devices), options))
