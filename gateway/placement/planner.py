"""From what is wanted and what is there to who runs what. Pure: the same view gives the same plan.

The rules, in the order in which `plan` applies them:

1. A model without a place in the catalogue, or that an operator wants unloaded, runs nowhere.
2. A model stays where it is assigned, if that worker may still run it: nothing moves without need.
3. A worker that is lost, or that may no longer run the model, or that failed to while another can, gives it up.
   A draining worker keeps what it has until it is gone, but it no longer counts.
4. Replicas above the wanted number are given up, the least useful first.
5. Missing replicas go to the worker with the fewest models, then to the one with the most free memory. A worker that
   just failed to load the model is the last choice, a draining one is none.

Memory is not estimated here: a worker measures, has the last word, and reports a failure, which rule 3 sees.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from shared.records import (
    Assigned,
    AssignmentRecord,
    IntentRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything a plan depends on. Mappings are by model id, worker name and replica id."""

    models: Mapping[str, ModelRecord]
    intents: Mapping[str, IntentRecord]
    workers: Mapping[str, WorkerRecord]
    replicas: Mapping[str, ReplicaRecord]
    wants: Mapping[str, AssignmentRecord]
    demand: Collection[str] = ()  # models that jobs wait for, beside those that intents name
    lost: Collection[str] = ()  # workers that are not there, and not only not there yet
    avoid: Collection[tuple[str, str]] = ()  # (worker, model) that failed not long ago


@dataclass(frozen=True)
class Plan:
    """What to write, and why each model stands as it does."""

    changes: list[AssignmentRecord]
    reasons: dict[str, str]  # by model id


@dataclass
class _Draft:
    """The assignments in the making: worker → model → why."""

    view: View
    places: dict[str, dict[str, str]] = field(default_factory=dict)

    def holders(self, model: str) -> list[str]:
        """Workers that the model is assigned to, by name."""
        return sorted(worker for worker, models in self.places.items() if model in models)

    def num_models(self, worker: str) -> int:
        """How many models a worker is assigned."""
        return len(self.places.get(worker, {}))


def plan(view: View, epoch: int) -> Plan:
    """The assignments that differ from those in `view.wants`, under this leader's epoch."""
    draft = _Draft(view, {worker: {} for worker in view.workers})
    for worker, want in view.wants.items():
        draft.places[worker] = {assigned.model.id: assigned.reason for assigned in want.models}
    known = set(view.models) | {model for models in draft.places.values() for model in models}
    reasons = {model: _place(draft, model) for model in sorted(known, key=lambda model: _priority(view, model))}
    return Plan(_changes(draft, epoch), reasons)


def _priority(view: View, model: str) -> tuple[bool, float, str]:
    """Operators' wishes first, the older first."""
    intent = view.intents.get(model)
    return (intent is None, intent.at_s if intent else 0.0, model)


def _place(draft: _Draft, model: str) -> str:
    view, intent = draft.view, draft.view.intents.get(model)
    # 1. Not wanted at all.
    if model not in view.models:
        return _clear(draft, model, "the catalogue no longer has it")
    if intent is not None and intent.want == "unloaded":
        return _clear(draft, model, f"{intent.by or 'an operator'} wants it unloaded")
    held = draft.holders(model)
    if intent is None and model not in view.demand and not held:
        return "nobody asked for it"
    number = intent.replicas if intent else 1
    allowed = set(intent.on) if intent and intent.on else None
    # 2. and 3. Who keeps it.
    for worker in held:
        may_run = worker not in view.lost and (allowed is None or worker in allowed)
        has_failed = (worker, model) in view.avoid and bool(_candidates(draft, model, allowed, fresh=True))
        if has_failed or not may_run:
            del draft.places[worker][model]
    counted = [worker for worker in draft.holders(model) if not _is_draining(view, worker)]
    # 4. Too many.
    for worker in sorted(counted, key=lambda worker: _usefulness(draft, worker, model))[
        : max(0, len(counted) - number)
    ]:
        del draft.places[worker][model]
        counted.remove(worker)
    # 5. Too few.
    missing = number - len(counted)
    for worker in _candidates(draft, model, allowed, fresh=False)[: max(0, missing)]:
        why = f"{intent.by or 'an operator'} wants it loaded" if intent else "jobs wait for it"
        draft.places[worker][model] = why
        counted.append(worker)
    return _reason(view, model, counted, number, allowed)


def _clear(draft: _Draft, model: str, reason: str) -> str:
    for models in draft.places.values():
        models.pop(model, None)
    return reason


def _candidates(draft: _Draft, model: str, allowed: set[str] | None, *, fresh: bool) -> list[str]:
    """Workers that could take the model as well, the best first. `fresh`: only those that did not fail with it."""
    view = draft.view
    able = [
        worker
        for worker in view.workers.values()
        if worker.state == "ready"
        and model not in draft.places.get(worker.name, {})
        and (allowed is None or worker.name in allowed)
        and not (fresh and (worker.name, model) in view.avoid)
        and _free_bytes(worker) > 0
    ]
    able.sort(
        key=lambda worker: (
            (worker.name, model) in view.avoid,
            draft.num_models(worker.name),
            -_free_bytes(worker),
            worker.name,
        )
    )
    return [worker.name for worker in able]


def _free_bytes(worker: WorkerRecord) -> int:
    """Of the device with the most."""
    return max((device.free_bytes - device.reserved_bytes for device in worker.devices), default=0)


def _is_draining(view: View, worker: str) -> bool:
    record = view.workers.get(worker)
    return record is not None and record.state == "draining"


def _usefulness(draft: _Draft, worker: str, model: str) -> tuple[bool, bool, int, str]:
    """Lowest first: not there, not ready, on a crowded worker."""
    view = draft.view
    is_ready = any(
        replica.model == model and replica.worker == worker and replica.state == "ready"
        for replica in view.replicas.values()
    )
    return (worker in view.workers, is_ready, -draft.num_models(worker), worker)


def _reason(view: View, model: str, holders: list[str], number: int, allowed: set[str] | None) -> str:
    if len(holders) >= number:
        return f"on {', '.join(sorted(holders))}"
    have = f"on {', '.join(sorted(holders))}; " if holders else ""
    if not view.workers:
        return have + "there are no workers"
    if allowed is not None and not allowed & set(view.workers):
        return have + f"none of the workers it may run on is there: {', '.join(sorted(allowed))}"
    return have + f"no further worker can take it ({len(holders)} of {number} placed)"


def _changes(draft: _Draft, epoch: int) -> list[AssignmentRecord]:
    changes: list[AssignmentRecord] = []
    for worker, models in sorted(draft.places.items()):
        before = draft.view.wants.get(worker)
        now = [Assigned(model=draft.view.models[model], reason=why) for model, why in sorted(models.items())]
        if _essence(now) != _essence(before.models if before else []):
            # Above what the worker has followed, too: agents refuse the past also where the bucket has forgotten it.
            record = draft.view.workers.get(worker)
            seen = record.generation if record else 0
            generation = max(before.generation if before else 0, seen) + 1
            changes.append(AssignmentRecord(worker=worker, epoch=epoch, generation=generation, models=now))
    return changes


def _essence(models: list[Assigned]) -> list[tuple[str, ModelRecord]]:
    """What makes two assignments differ: not the reasons."""
    return sorted(((assigned.model.id, assigned.model) for assigned in models), key=lambda pair: pair[0])
