"""A fleet on paper: what the planner sees of it, and agents that follow what the planner says. No clock but its own."""

from typing import Any, Literal

import msgspec

from gateway.placement.planner import Plan, plan
from gateway.placement.view import Backlog, Size, View
from shared.records import (
    Assigned,
    AssignmentRecord,
    Device,
    DrainRecord,
    Failure,
    FailureKind,
    IntentRecord,
    MeasuredRecord,
    Measurement,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)
from shared.settings import EvictionSettings, PlacementSettings

GB = 1 << 30
NOW = 10_000.0  # every model was loaded long before, unless said otherwise


class Paper:
    """A fleet that a test writes down. Sizes are in GB, times in seconds before now."""

    def __init__(self, strategy: Literal["lru", "priority"] = "lru", **placement: float) -> None:
        self.now = NOW
        self.models: dict[str, ModelRecord] = {}
        self.intents: dict[str, IntentRecord] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.wants: dict[str, AssignmentRecord] = {}
        self.drains: dict[str, DrainRecord] = {}
        self.measured: dict[str, MeasuredRecord] = {}
        self.sizes: dict[str, Size] = {}
        self.unsized: set[str] = set()
        self.backlog: dict[str, Backlog] = {}
        self.asked: dict[str, float] = {}
        self.served: dict[str, float] = {}
        self.lost: set[str] = set()
        self.failures: dict[tuple[str, str], Failure] = {}
        self.is_settled = True
        self.deaf: set[str] = set()  # workers that have not heard of their latest assignment
        self.foreign: dict[tuple[str, str], int] = {}  # taken by others, on (worker, device)
        self.eviction = EvictionSettings(strategy=strategy, min_residency_s=5.0)
        self.placement = PlacementSettings(**({"starvation_bound_s": 60.0} | placement))

    # --- what is there ---------------------------------------------------------------------------------------

    def worker(
        self,
        name: str,
        *sizes: float,
        state: Literal["ready", "draining"] = "ready",
        kind: str = "",
        mirrors: tuple[str, ...] = (),
    ) -> None:
        """A worker with a device of each of these sizes, whose settings define these mirrors."""
        sizes = sizes or (16,)
        ids = [f"cuda:{index}" for index in range(len(sizes))] if len(sizes) > 1 or kind == "cuda" else ["cpu"]
        devices = [
            Device(id=id, kind="cpu" if id == "cpu" else "cuda", name=id, total_bytes=int(size * GB), free_bytes=0)
            for id, size in zip(ids, sizes, strict=True)
        ]
        self.workers[name] = WorkerRecord(
            name=name, incarnation="i", host="h", state=state, devices=devices, mirrors=list(mirrors)
        )

    def model(self, *ids: str, size: float | None = 4, least: float | None = None, **fields: Any) -> None:
        """Models whose files say that they take so much; None: nobody knows."""
        for id in ids:
            self.models[id] = ModelRecord(id=id, **({"source": "s"} | fields))
            if size is not None:
                self.sizes[id] = Size(minimum_bytes=int((least or size) * GB), wanted_bytes=int(size * GB))

    def taken_by_others(self, worker: str, size: float, device: str = "cpu") -> None:
        """Memory that the driver reports as gone and nobody in the fleet has."""
        self.foreign[worker, device] = int(size * GB)

    def bytes_of(self, model: str) -> int:
        """Its wanted size."""
        return self.sizes[model].wanted_bytes if model in self.sizes else 0

    def assigned(self, model: str, worker: str, device: str = "cpu", **fields: Any) -> Assigned:
        """It is assigned there; whether it runs is another matter."""
        given = Assigned(model=self.models[model], devices=[device], memory_bytes=self.bytes_of(model), reason="before")
        given = msgspec.structs.replace(given, **fields)
        old = self.wants.get(worker) or AssignmentRecord(worker=worker, epoch=1, generation=3)
        others = [one for one in old.models if one.model.id != model]
        self.wants[worker] = msgspec.structs.replace(old, models=[*others, given])
        return given

    def replica(self, model: str, worker: str, state: Any = "ready", *, idle: float = 100, **fields: Any) -> None:
        """A replica's record, of one that was loaded `age` seconds ago and got its last job `idle` seconds ago."""
        age, device = fields.pop("age", 1000), fields.pop("device", "cpu")
        values: dict[str, Any] = {
            "devices": [device],
            "reserved_bytes": self.bytes_of(model),
            "since_s": self.now - age,
            "last_used_s": self.now - idle if state == "ready" and idle < age else 0.0,
        }
        id = f"{model}@{worker}"
        self.replicas[id] = ReplicaRecord(id=id, model=model, worker=worker, state=state, **(values | fields))

    def ready(self, model: str, worker: str, **fields: Any) -> None:
        """It is assigned there and serves."""
        self.assigned(model, worker, fields.get("device", "cpu"), **fields.pop("place", {}))
        self.replica(model, worker, **fields)

    def loading(self, model: str, worker: str, **fields: Any) -> None:
        """It is assigned there and loads."""
        self.assigned(model, worker, fields.get("device", "cpu"))
        self.replica(model, worker, "loading", **({"age": 2} | fields))

    def failed(
        self,
        model: str,
        worker: str,
        reason: str = "no",
        *,
        kind: FailureKind = "",
        needs: float = 0,
        again: float = 10,
        attempts: int = 1,
    ) -> None:
        """Its last load there failed, and is to be tried again."""
        self.failures[worker, model] = Failure(
            model=model,
            reason=reason,
            at_s=self.now - 1,
            retry_at_s=self.now + again,
            kind=kind,
            needed_bytes=int(needs * GB),
            attempts=attempts,
        )

    def took(self, model: str, worker: str, size: float, load_s: float = 1.0) -> None:
        """What an earlier load took."""
        from gateway.placement.view import variant

        old = self.measured.get(model)
        loads = [*(old.loads if old else []), Measurement(worker=worker, bytes=int(size * GB), load_s=load_s)]
        self.measured[model] = MeasuredRecord(model=model, variant=variant(self.models[model]), loads=loads)

    # --- what is wanted --------------------------------------------------------------------------------------

    def jobs(self, model: str, queued: int = 1, *, waiting: float = 1, running: int = 0) -> None:
        """Jobs in its queue, the first of which waits so long."""
        self.backlog[model] = Backlog(queued=queued, running=running, since_s=self.now - waiting)

    def load(self, model: str, *on: str, replicas: int = 1, ago: float = 50) -> None:
        """An operator wants it loaded."""
        self.intents[model] = IntentRecord(
            model=model, want="loaded", on=list(on), replicas=replicas, by="ann", at_s=self.now - ago
        )

    def unload(self, model: str) -> None:
        """An operator wants it nowhere."""
        self.intents[model] = IntentRecord(model=model, want="unloaded", by="ann", at_s=self.now)

    def drain(self, worker: str) -> None:
        """An operator wants the worker emptied."""
        self.drains[worker] = DrainRecord(worker=worker, by="ann")

    # --- what comes of it ------------------------------------------------------------------------------------

    def view(self) -> View:
        """What the planner sees."""
        return View(
            models=dict(self.models),
            intents=dict(self.intents),
            workers={name: self._reported(worker) for name, worker in self.workers.items()},
            replicas=dict(self.replicas),
            wants=dict(self.wants),
            drains=dict(self.drains),
            measured=dict(self.measured),
            sizes=dict(self.sizes),
            unsized=set(self.unsized),
            backlog=dict(self.backlog),
            asked=dict(self.asked),
            served=dict(self.served),
            lost=set(self.lost),
            failures=dict(self.failures),
            is_settled=self.is_settled,
            placement=self.placement,
            eviction=self.eviction,
            now=self.now,
        )

    def _reported(self, worker: WorkerRecord) -> WorkerRecord:
        devices = []
        for device in worker.devices:
            held = sum(
                one.reserved_bytes
                for one in self.replicas.values()
                if one.worker == worker.name and device.id in one.devices and one.state in ("ready", "draining")
            )
            free = device.total_bytes - held - self.foreign.get((worker.name, device.id), 0)
            devices.append(msgspec.structs.replace(device, free_bytes=max(0, free)))
        want = self.wants.get(worker.name)
        followed = want.generation if want and worker.name not in self.deaf else worker.generation
        failures = [one for (at, _), one in self.failures.items() if at == worker.name]
        return msgspec.structs.replace(worker, devices=devices, generation=followed, failures=failures)

    def plan(self, epoch: int = 1) -> Plan:
        """What the planner says."""
        return plan(self.view(), epoch)

    def write(self, decided: Plan) -> None:
        """The assignments are in force."""
        self.wants |= {record.worker: record for record in decided.changes}

    def step(self) -> Plan:
        """Plan, and write it."""
        decided = self.plan()
        self.write(decided)
        return decided

    def obey(self) -> None:
        """Agents follow at once: what is to go and runs nothing is gone, what is to come is ready."""
        for id, replica in list(self.replicas.items()):
            place = self.place(replica.model, replica.worker)
            if place is not None and not place.unload_if_idle:
                continue
            if not replica.running:
                del self.replicas[id]
            elif place is None:
                self.replicas[id] = msgspec.structs.replace(replica, state="draining")
        for worker, want in self.wants.items():
            for one in want.models:
                is_there = f"{one.model.id}@{worker}" in self.replicas
                if worker in self.workers and not is_there and not one.unload_if_idle:
                    device = one.devices[0] if one.devices else "cpu"
                    fields = {"reserved_bytes": one.memory_bytes, "age": 0, "device": device, "idle": 0}
                    self.replica(one.model.id, worker, **fields)

    def place(self, model: str, worker: str) -> Assigned | None:
        """Its assignment there."""
        want = self.wants.get(worker)
        return next((one for one in want.models if one.model.id == model), None) if want else None


def placed(decided: Plan) -> dict[str, list[str]]:
    """The assignments that change: models by worker, those asked to yield with a question mark."""
    return {
        record.worker: [one.model.id + ("?" if one.unload_if_idle else "") for one in record.models]
        for record in decided.changes
    }


def overcommitted(view: View) -> list[str]:
    """Devices on which more was promised than they have: the whole of it, added up a second time and more simply.

    Every model that is assigned to a worker, or has a record there in any state, counts with the larger of what it was
    promised and what it reserved, on each device that either names.
    """
    faults = []
    for worker in view.workers.values():
        for device in worker.devices:
            promised: dict[str, int] = {}
            want = view.wants.get(worker.name)
            for one in want.models if want is not None else []:
                if device.id in one.devices:
                    promised[one.model.id] = one.memory_bytes
            for replica in view.replicas.values():
                if replica.worker == worker.name and device.id in replica.devices:
                    reserved = max(replica.reserved_bytes, replica.measured_bytes)
                    promised[replica.model] = max(promised.get(replica.model, 0), reserved)
            if sum(promised.values()) > device.total_bytes:
                faults.append(f"{device.id} of {worker.name}: {promised} in {device.total_bytes}")
    return faults


def one_slot(*models: str, **settings: float) -> Paper:
    """A worker on which any one of these models fits, and no two."""
    fleet = Paper(**settings)
    fleet.worker("w1", 8)
    fleet.model(*models, size=6)
    return fleet


def paper(*workers: tuple[str, float], **settings: float) -> Paper:
    """A fleet of workers, each with a name and its memory in GB."""
    made = Paper(**settings)
    for name, size in workers:
        made.worker(name, size)
    return made
