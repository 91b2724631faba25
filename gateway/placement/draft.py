"""A plan in the making: the assignments so far, the books that follow from them, and what was decided on the way."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.placement.memory import Books, Holding
from gateway.placement.view import View
from shared.records import Assigned, AssignmentRecord, EventKind, ModelRecord, ReplicaRecord


@dataclass(frozen=True)
class Decision:
    """One thing that is done, and why."""

    kind: EventKind
    model: str
    worker: str
    reason: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """How a model stands: ready, loading, planned, failed, draining, waiting, cannot_fit, unloaded, unknown or cold."""

    state: str
    reason: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


class Draft:
    """Places are (worker, model) pairs with their assignment. All changes of the plan go through here."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.books = Books(view)
        self.decisions: list[Decision] = []
        self.blocked: dict[str, Verdict] = {}  # models that are to be somewhere and have no place
        self._wakes: list[float] = []
        self._before = {(worker, one.model.id): one for worker, want in view.wants.items() for one in want.models}
        self._places: dict[tuple[str, str], Assigned] = {}
        self._workers_of: defaultdict[str, set[str]] = defaultdict(set)  # by model
        self._models_of: defaultdict[str, set[str]] = defaultdict(set)  # by worker
        self._room_for = {one.room_for for one in self._before.values()}
        self._yields: dict[tuple[str, str], Decision] = {}
        self._leaving = {(worker, one.model.id): one for worker in view.wants for one in view.leaving(worker)}
        for (worker, model), assigned in self._before.items():
            if (place := self._adopted(worker, model, assigned)) is not None:
                self._set(worker, model, place)

    def _adopted(self, worker: str, model: str, assigned: Assigned) -> Assigned | None:
        """A standing place as it is taken over. Whether it yields is decided anew, unless it does so already."""
        if not assigned.unload_if_idle:
            return assigned
        replica = self.view.replica(worker, model)
        if worker in self.view.workers and (replica is None or replica.state == "failed"):
            self.books.drop(worker, model)  # it has yielded: the place is over
            return None
        if replica is not None and replica.state == "draining":
            return assigned
        return msgspec.structs.replace(assigned, unload_if_idle=False, room_for="")

    def _set(self, worker: str, model: str, place: Assigned) -> None:
        self._places[worker, model] = place
        self._workers_of[model].add(worker)
        self._models_of[worker].add(model)

    # --- reading ---------------------------------------------------------------------------------------------

    def places(self) -> list[tuple[str, str]]:
        """Every place, in order."""
        return sorted(self._places)

    def models(self) -> set[str]:
        """Every model that has a place."""
        return {model for _, model in self._places}

    def since_s(self, worker: str, model: str) -> float:
        """When a model was assigned to the worker; 0: it is not, or nobody knows."""
        place = self._places.get((worker, model))
        return place.at_s if place is not None else 0.0

    def has(self, worker: str, model: str) -> bool:
        """Is the model assigned to the worker?"""
        return (worker, model) in self._places

    def holders(self, model: str) -> list[str]:
        """Workers that the model is assigned to, without those that it is leaving."""
        return sorted(worker for worker in self._workers_of[model] if not self.is_leaving(worker, model))

    def num_models(self, worker: str) -> int:
        """How many models a worker is assigned."""
        return len(self._models_of[worker])

    def is_leaving(self, worker: str, model: str) -> bool:
        """It will be gone, or is asked to."""
        holding = self.books.holdings.get((worker, model))
        return holding is not None and holding.is_leaving

    def was_yielding(self, worker: str, model: str) -> bool:
        """The standing assignment asks it to go when idle."""
        before = self._before.get((worker, model))
        return before is not None and before.unload_if_idle

    def has_room_made(self, model: str) -> bool:
        """Another was asked to make room for this one."""
        return model in self._room_for

    def served_s(self, replica: ReplicaRecord) -> float:
        """How long it has been serving."""
        return self.view.now - replica.since_s - replica.load_s

    def used_s(self, worker: str, model: str) -> float:
        """When it was last of use, in unix seconds; while jobs run: now."""
        replica = self.view.replica(worker, model)
        if replica is None:
            return 0.0
        if replica.running or replica.waiting:
            return self.view.now
        return max(replica.last_used_s, replica.since_s + replica.load_s)

    # --- changing --------------------------------------------------------------------------------------------

    def wake(self, at_s: float) -> None:
        """Something that depends on time will be different then."""
        if at_s > self.view.now:
            self._wakes.append(at_s)

    @property
    def wake_at_s(self) -> float:
        """The next such moment, in unix seconds; 0: none."""
        return min(self._wakes, default=0.0)

    def decide(self, kind: EventKind, model: str, worker: str, reason: str, **inputs: Any) -> None:
        """Note what is done."""
        self.decisions.append(Decision(kind, model, worker, reason, inputs))

    def assign(self, worker: str, model: ModelRecord, devices: list[str], bytes: int, reason: str) -> None:
        """A new place, and its charge."""
        place = Assigned(model=model, devices=devices, memory_bytes=bytes, reason=reason, at_s=self.view.now)
        self._set(worker, model.id, place)
        self.books.hold(
            Holding(model.id, worker, tuple(devices), bytes, is_known=bytes > 0, is_taken=False, is_leaving=False)
        )

    def revise(self, worker: str, model: ModelRecord, bytes: int) -> None:
        """The catalogue's entry changed: the worker is to run it as it is now, within as much memory."""
        old = self._places[worker, model.id]
        self._places[worker, model.id] = msgspec.structs.replace(old, model=model, memory_bytes=bytes)

    def remove(self, worker: str, model: str, reason: str, **inputs: Any) -> None:
        """The worker is told to unload it: what runs is finished or handed over. Its charge stays while it is there."""
        # Without a record of it, too: the worker may have begun with it a moment ago.
        self._leaving[worker, model] = self._places.pop((worker, model))
        self._workers_of[model].discard(worker)
        self._models_of[worker].discard(model)
        self._yields.pop((worker, model), None)
        if holding := self.books.holdings.get((worker, model)):
            holding.is_leaving = True
        self.decide("unloaded", model, worker, reason, **inputs)

    def ask_to_yield(self, worker: str, model: str, reason: str, room_for: str = "", **inputs: Any) -> None:
        """The worker is told to unload it if it is idle. Should jobs have come meanwhile, it stays."""
        place = msgspec.structs.replace(self._places[worker, model], unload_if_idle=True, room_for=room_for)
        self._places[worker, model] = place
        self.books.holdings[worker, model].is_leaving = True
        self._yields[worker, model] = Decision("yielding", model, worker, reason, inputs)

    def finish(self) -> None:
        """Note who is newly asked to yield, and who no longer is."""
        for (worker, model), decision in self._yields.items():
            if not self.was_yielding(worker, model):
                self.decisions.append(decision)
        for (worker, model), before in self._before.items():
            now = self._places.get((worker, model))
            if before.unload_if_idle and now is not None and not now.unload_if_idle:
                self.decide("kept", model, worker, "it is not to yield any more: it is in use, or its room not needed")

    def changes(self, epoch: int, claim: bool) -> list[AssignmentRecord]:
        """The assignments that differ from those in force; with `claim`, also those under another epoch."""
        changes: list[AssignmentRecord] = []
        for worker in sorted(self.view.workers.keys() | self.view.wants.keys() | self._models_of.keys()):
            before = self.view.wants.get(worker)
            now = [self._places[worker, model] for model in sorted(self._models_of[worker])]
            is_foreign = claim and (before is None or before.epoch != epoch)
            if is_foreign or _essence(now) != _essence(before.models if before else []):
                # Above what the worker has followed, too: agents refuse the past also where the bucket forgot it.
                record = self.view.workers.get(worker)
                seen = record.generation if record else 0
                generation = max(before.generation if before else 0, seen) + 1
                gone = [
                    one
                    for (at, model), one in sorted(self._leaving.items())
                    if at == worker and not self.has(at, model)
                ]
                changes.append(
                    AssignmentRecord(worker=worker, epoch=epoch, generation=generation, models=now, leaving=gone)
                )
        return changes


def _essence(models: list[Assigned]) -> list[Assigned]:
    """What makes two assignments differ: neither reasons nor times."""
    plain = [msgspec.structs.replace(one, reason="", at_s=0.0) for one in models]
    return sorted(plain, key=lambda one: one.model.id)
