"""What the planner says of a model, and what it would do if something happened. Pure, and nothing is done."""

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from gateway.placement import search
from gateway.placement.draft import Draft
from gateway.placement.memory import Books
from gateway.placement.planner import Plan, plan
from gateway.placement.view import View
from shared.messages import Candidate, Explained, Foreseen, WhatIf
from shared.records import AssignmentRecord, DrainRecord, IntentRecord, ReplicaRecord, WorkerRecord

MAX_ROUNDS = 24
LOAD_S = 1.0  # how long a load takes in what is foreseen, where none was measured


def explain(view: View, decided: Plan, model: str) -> Explained:
    """How a model stands, and every worker as a place for it."""
    verdict = decided.verdicts.get(model)
    record = view.models.get(model)
    if verdict is None or record is None:
        return Explained("unknown", "the catalogue does not have it")
    return Explained(verdict.state, verdict.reason, dict(verdict.inputs), _candidates(Draft(view), view, model))


def _candidates(draft: Draft, view: View, model: str) -> list[Candidate]:
    record = view.models[model]
    found = search.survey(draft, record)
    now = search.room_now(draft, record, found)
    able = {one.name: one for one in found.candidates}
    rows = []
    for name in sorted(view.workers):
        sites = draft.books.of_worker(name)
        best = max(sites, key=lambda site: site.free_bytes, default=None)
        if draft.has(name, model):
            replica = view.replica(name, model)
            verdict = str(replica.state) if replica else "assigned"
        elif name not in able:
            verdict = found.too_small.get(name) or found.barred.get(name, "")
        elif now is not None and not able[name].objection:
            verdict = "fits now" + (": the best choice" if now.candidate.name == name else "")
        else:
            alone = search.Search(candidates=[able[name]])
            settling = search.is_settling(draft, record, alone)
            room = None if settling else search.room_by_eviction(draft, record, alone)
            victims = ", ".join(one.model for one in room.victims) if room else ""
            verdict = f"fits when {victims} leaves" if victims else settling or able[name].objection
        device = best.device.id if best else ""
        free, total = (best.free_bytes, best.device.total_bytes) if best else (0, 0)
        rows.append(Candidate(name, device, verdict, free, total))
    return rows


def foresee(view: View, question: WhatIf) -> Foreseen:
    """The steps that would be taken, to the point where nothing more happens by itself."""
    view = replace(view, unsized=())  # of whom nothing is known is tried where most is free
    before = plan(view, 1)
    try:
        changed = _happen(view, question)
    except LookupError as error:
        return Foreseen(problem=str(error.args[0]))
    steps: list[str] = []
    start, after = changed.now, plan(changed, 1)
    for _ in range(MAX_ROUNDS):
        when = f"after {changed.now - start:.0f} s: " if changed.now - start >= 1 else ""
        steps += [
            f"{when}{one.worker}: {_WORDS.get(one.kind, one.kind)} {one.model} ({one.reason})"
            for one in after.decisions
        ]
        following = advance(changed, after)
        if following is None:
            break
        changed, after = following, plan(following, 1)
    states = {
        model: f"{before.verdicts[model].state if model in before.verdicts else 'unknown'} → {verdict.state}: "
        f"{verdict.reason}"
        for model, verdict in after.verdicts.items()
        if model not in before.verdicts or before.verdicts[model].state != verdict.state or model == question.name
    }
    return Foreseen(steps, states)


_WORDS = {"assigned": "load", "yielding": "unload if idle", "unloaded": "unload", "kept": "keep"}


def _happen(view: View, question: WhatIf) -> View:
    name = question.name
    if question.change in ("load", "unload"):
        if name not in view.models:
            raise LookupError(f"{name} is not in the catalogue")
        intent = IntentRecord(model=name, want="loaded", by="what-if", at_s=view.now)
        if question.change == "unload":
            intent.want = "unloaded"
        return replace(view, intents={**view.intents, name: intent})
    if question.change in ("drain", "lose"):
        if name not in view.workers:
            raise LookupError(f"there is no worker {name}; there are {', '.join(sorted(view.workers)) or 'none'}")
        if question.change == "drain":
            return replace(view, drains={**view.drains, name: DrainRecord(worker=name, by="what-if")})
        return replace(
            view,
            workers={worker: one for worker, one in view.workers.items() if worker != name},
            replicas={id: one for id, one in view.replicas.items() if one.worker != name},
            lost={*view.lost, name},
        )
    return view


def advance(view: View, decided: Plan) -> View | None:
    """The fleet once the plan was followed: what was to go is gone, what was to load is ready. None: no more to come.

    Running jobs are taken to end, waiting ones to be served by whatever became ready.
    """
    wants = {**view.wants, **{record.worker: record for record in decided.changes}}
    replicas: dict[str, ReplicaRecord] = {}
    for id, replica in view.replicas.items():
        want = wants.get(replica.worker)
        assigned = next((one for one in want.models if one.model.id == replica.model), None) if want else None
        if assigned is not None and not assigned.unload_if_idle:
            replicas[id] = replica
    there = {(one.worker, one.model) for one in replicas.values()}
    books = Books(replace(view, wants=wants))
    loaded = set()
    for worker, want in wants.items():
        for one in want.models:
            pair = (worker, one.model.id)
            if worker not in view.workers or pair in there or one.unload_if_idle or pair in view.failures:
                continue
            sites = [site for site in books.of_worker(worker) if site.device.id in one.devices]
            taken = one.memory_bytes or min((site.device.total_bytes for site in sites), default=0)
            loaded.add(one.model.id)
            replicas[f"{worker}/{one.model.id}"] = ReplicaRecord(
                id=f"{worker}/{one.model.id}",
                model=one.model.id,
                worker=worker,
                state="ready",
                devices=one.devices,
                reserved_bytes=taken,
                load_s=LOAD_S,
                since_s=view.now,
                last_used_s=view.now + LOAD_S,
            )
    now = view.now + LOAD_S
    if not decided.changes:
        waits = any(verdict.state == "waiting" for verdict in decided.verdicts.values())
        if not waits or not decided.wake_at_s:
            return None
        now = max(decided.wake_at_s, view.now) + 0.001
    return replace(
        view,
        wants=wants,
        replicas=replicas,
        workers={name: _having_followed(view, name, replicas, wants) for name in view.workers},
        asked={model: since for model, since in view.asked.items() if model not in loaded},
        backlog={model: one for model, one in view.backlog.items() if model not in loaded},
        now=now,
    )


def _having_followed(
    view: View, name: str, replicas: dict[str, ReplicaRecord], wants: Mapping[str, AssignmentRecord]
) -> WorkerRecord:
    """The worker with its devices' memory as it would be reported, once it did what it was told."""
    worker = view.workers[name]

    def held(device: str, among: list[ReplicaRecord]) -> int:
        return sum(one.reserved_bytes for one in among if one.worker == name and device in one.devices)

    devices = []
    for device in worker.devices:
        change = held(device.id, list(view.replicas.values())) - held(device.id, list(replicas.values()))
        devices.append(msgspec.structs.replace(device, free_bytes=max(0, device.free_bytes + change)))
    followed = max(worker.generation, wants[name].generation if name in wants else 0)
    return msgspec.structs.replace(worker, devices=devices, generation=followed)
