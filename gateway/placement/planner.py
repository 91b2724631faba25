"""From what is wanted and what is there to who runs what. Pure: the same view gives the same plan.

1. Who gives up a place, whatever else is wanted:
   1.1 a worker that is lost, and a model that left the catalogue or that an operator wants unloaded;
   1.2 a worker that the model's entry does not allow any more;
   1.3 a worker that refused it for want of memory, promised it too little, or failed with it while another has room.
2. What may go without anybody asking for its memory:
   2.1 replicas above what is wanted and what demand may bring, at once, the least useful first;
   2.2 replicas above the wanted number that were idle for a while, if still idle;
   2.3 models that nobody wants and that got no job for as long as they are kept alive, if still idle.
3. Who is missing: models that are wanted loaded, that jobs wait for, or whose jobs outrun their replicas. One after
   another: those for whom room was made, those that starve, by class, by age. For each:
   3.1 no worker could ever run it: it cannot fit; or nobody knows yet: it waits for the answer of a worker;
   3.2 it fits now somewhere: there, beside the fewest models, then where most is free;
   3.3 it will fit where something is leaving: it waits, and that room is kept for it;
   3.4 it fits where others give way: the idle ones are asked to unload if idle, and if it starves the busy are told
       to finish and go; it waits, and that room is kept for it;
   3.5 else it waits for what the reasons say.
4. Workers that are drained, and those on which an operator does not want a model, give up what has a ready replica
   elsewhere and what nobody needs; those that are drained also what cannot be had elsewhere.
5. The catalogue's changes reach the workers.

The rules themselves are in `rules`, one function each; memory is counted in `memory`.
"""

from dataclasses import dataclass, field

from gateway.placement import rules, search
from gateway.placement.draft import Decision, Draft, Verdict
from gateway.placement.memory import need
from gateway.placement.search import Room, Search
from gateway.placement.standing import standing
from gateway.placement.view import View, variant
from shared import sources
from shared.records import AssignmentRecord, ModelRecord

__all__ = ["Decision", "Plan", "Verdict", "View", "plan"]


@dataclass(frozen=True)
class Plan:
    """What to write, why, how every model stands, and when to look again although nothing changed."""

    changes: list[AssignmentRecord]
    decisions: list[Decision] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by model id
    wake_at_s: float = 0.0  # unix time; 0: not before something changes

    @property
    def reasons(self) -> dict[str, str]:
        """The reason of each verdict."""
        return {model: verdict.reason for model, verdict in self.verdicts.items()}


def plan(view: View, epoch: int, *, claim: bool = False) -> Plan:
    """The assignments that differ from those in `view.wants`, under this leader's epoch.

    With `claim`, also those that stand under another leader's epoch, and an empty one for each worker without any, so
    that whatever that leader still writes comes too late.
    """
    draft = Draft(view)
    _give_up(draft)  # 1
    _let_go(draft)  # 2
    for model in _missing(draft):  # 3
        _place(draft, model)
    _move(draft)  # 4
    _follow_catalogue(draft)  # 5
    draft.finish()
    for failure in view.failures.values():
        draft.wake(failure.retry_at_s)
    known = sorted({*view.models, *draft.models(), *(model for _, model in draft.books.holdings)})
    verdicts = {model: standing(draft, model) for model in known}
    return Plan(draft.changes(epoch, claim), draft.decisions, verdicts, draft.wake_at_s)


# --- 1. who gives up a place -----------------------------------------------------------------------------------


def _give_up(draft: Draft) -> None:
    view = draft.view
    for worker, model in draft.places():
        if reason := rules.is_lost(view, worker) or rules.is_unknown(view, model) or rules.is_unwanted(view, model):
            draft.remove(worker, model, reason)  # 1.1
        elif reason := rules.is_forbidden(view.models[model], worker):
            draft.remove(worker, model, reason)  # 1.2
    for worker, model in draft.places():
        record = view.models[model]
        if not (failure := rules.has_failed(view, record, worker, draft.since_s(worker, model))):
            continue
        replica = view.replica(worker, model)
        if replica is not None and replica.state == "loading":
            continue  # it is being tried again
        found = search.survey(draft, record)
        elsewhere = search.room_now(draft, record, found)
        is_better = elsewhere is not None and not rules.after_failure(view, record, elsewhere.candidate.name)
        is_refused = rules.was_refused(view, record, worker) or rules.is_underpromised(view, record, worker)
        if is_better or is_refused:
            draft.remove(worker, model, failure)  # 1.3


# --- 2. what may go by itself ----------------------------------------------------------------------------------


def _let_go(draft: Draft) -> None:
    view = draft.view
    for model in sorted(draft.models()):
        record = view.models[model]
        holders = _counted(draft, model)
        while rules.is_above_limit(view, record, len(holders)):  # 2.1
            least = min(holders, key=lambda worker: _usefulness(draft, worker, record.id))
            draft.remove(least, model, f"{len(holders)} replicas are more than wanted")
            holders = _counted(draft, model)
        for worker in sorted(holders, key=lambda worker: draft.used_s(worker, record.id)):
            replica = view.replica(worker, model)
            if replica is None or replica.state != "ready":
                continue
            used = draft.used_s(worker, model)
            idle = view.now - used
            if rules.is_busy(view, record, replica):
                continue
            num_places = len(_counted(draft, model))
            if rules.is_spare(view, record, num_places, idle):  # 2.2
                reason = f"a replica above the wanted number, idle for {idle:.0f} s"
                draft.ask_to_yield(worker, model, reason, idle_s=idle)
            elif num_places == 1 and rules.is_unused(view, record, idle):  # 2.3
                draft.ask_to_yield(worker, model, f"nobody used it for {idle:.0f} s", idle_s=idle)
            else:
                if num_places > 1:
                    draft.wake(used + view.placement.scale_down_after_s)
                if keep_s := record.keep_alive_s or view.placement.keep_alive_s:
                    draft.wake(used + keep_s)


def _usefulness(draft: Draft, worker: str, model: str) -> tuple[bool, bool, float, str]:
    """Lowest first: not there, not ready, used longest ago."""
    replica = draft.view.replica(worker, model)
    is_ready = replica is not None and replica.state == "ready"
    return (worker in draft.view.workers, is_ready, draft.used_s(worker, model), worker)


# --- 3. who is missing -----------------------------------------------------------------------------------------


def _missing(draft: Draft) -> list[ModelRecord]:
    """Models that are to have more places than they have, in the order in which they are served."""
    view = draft.view
    missing = [
        model
        for model in view.models.values()
        if not rules.is_unwanted(view, model.id) and len(_counted(draft, model.id)) < _target(draft, model)
    ]
    return sorted(missing, key=lambda model: _turn(draft, model))


def _turn(draft: Draft, model: ModelRecord) -> tuple[int, int, int, float, str]:
    return (
        rules.after_promised_room(draft.has_room_made(model.id)),
        rules.after_starving(draft.view, model),
        rules.by_class(model),
        rules.by_age(_since(draft.view, model)),
        model.id,
    )


def _since(view: View, model: ModelRecord) -> float:
    """From when on it is wanted."""
    waiting = view.waiting_since(model.id)
    intent = view.intents.get(model.id)
    times = [time for time in (waiting, intent.at_s if intent else None) if time is not None]
    return min(times, default=0.0)


def _counted(draft: Draft, model: str) -> list[str]:
    """Places that count: not those that are to be left."""
    view, record = draft.view, draft.view.models[model]
    return [worker for worker in draft.holders(model) if not rules.is_to_leave(view, record, worker)]


def _target(draft: Draft, model: ModelRecord) -> int:
    view = draft.view
    holders = _counted(draft, model.id)
    ready = [worker for worker in holders if _is_ready(view, worker, model.id)]
    target = rules.num_wanted(view, model)
    if rules.is_asked_for(view, model) or _is_used_where_it_leaves(draft, model):
        target = max(target, 1)
    if rules.is_overrun(view, model, len(holders), len(ready)):
        target = max(target, len(holders) + 1)
    elif ready and (jobs := view.backlog.get(model.id)) and jobs.queued and len(holders) < model.max_replicas:
        draft.wake(jobs.since_s + view.placement.scale_up_after_s)
    return target


def _is_ready(view: View, worker: str, model: str) -> bool:
    replica = view.replica(worker, model)
    return replica is not None and replica.state == "ready"


def _is_used_where_it_leaves(draft: Draft, model: ModelRecord) -> bool:
    view = draft.view
    return any(
        rules.is_to_leave(view, model, worker) and rules.is_busy(view, model, view.replica(worker, model.id))
        for worker in draft.holders(model.id)
    )


def _place(draft: Draft, model: ModelRecord) -> None:
    """Give a model the places that it lacks, as far as can be."""
    target = _target(draft, model)
    while len(_counted(draft, model.id)) < target:
        if not _place_once(draft, model, is_first=not _counted(draft, model.id)):
            return


def _place_once(draft: Draft, model: ModelRecord, *, is_first: bool) -> bool:
    view = draft.view
    found = search.survey(draft, model)
    # 3.1
    if not found.candidates:
        draft.blocked[model.id] = _nowhere(draft, model, found)
        return False
    if unsized := rules.is_unsized(view, model, found.candidates[0].wanted):
        draft.blocked[model.id] = Verdict("planned", unsized)
        return False
    # 3.2
    if room := search.room_now(draft, model, found):
        _assign(draft, model, room)
        return True
    # 3.3
    if room := search.room_coming(draft, model, found):
        _claim(draft, model, room, "waits for room on {worker}, which is being freed")
        return False
    if settling := search.is_settling(draft, model, found):
        draft.blocked[model.id] = Verdict("waiting", settling)
        return False
    # 3.4
    is_entitled = is_first or len(_counted(draft, model.id)) < rules.num_wanted(view, model)
    if (since := view.waiting_since(model.id)) is not None:
        draft.wake(since + view.placement.starvation_bound_s)
    if is_entitled and not (unproven := rules.is_unproven(view, model)):
        if room := search.room_by_eviction(draft, model, found):
            _evict(draft, model, room)
            return False
    elif is_entitled:
        found.candidates[0].objection = unproven
    # 3.5
    reasons = [one.objection for one in found.candidates if one.objection]
    draft.blocked[model.id] = Verdict(
        "waiting", "; ".join(dict.fromkeys(reasons)) or "no worker has room", _inputs(found)
    )
    return False


def _nowhere(draft: Draft, model: ModelRecord, found: Search) -> Verdict:
    """3.1: for good, or only with the workers that are here now?"""
    view = draft.view
    allowed = [name for name in view.workers if not rules.is_barred(view, model, name)]
    small = {name: text for name, text in found.too_small.items() if name in allowed}
    named = set(model.workers)
    intent = view.intents.get(model.id)
    if intent is not None and intent.want == "loaded":
        named |= set(intent.on)
    absent = sorted(name for name in named if name not in view.workers)
    if not view.workers:
        return Verdict("waiting", "there are no workers")
    if absent and not allowed:
        return Verdict("waiting", f"none of the workers it may run on is there: {', '.join(absent)}")
    if small and len(small) == len(allowed) and view.is_settled and not absent:
        largest = max((site.device.total_bytes for site in draft.books.sites.values()), default=0)
        if all(name in found.strange for name in small):
            return Verdict("cannot_fit", _no_mirror(view, model, found))
        reason = "; ".join(dict.fromkeys(small.values()))
        least = need(view, model, next(iter(small))).minimum_bytes
        return Verdict("cannot_fit", reason, {"needs_bytes": least, "devices": model.devices, "largest_bytes": largest})
    held = len(_counted(draft, model.id))
    why = "; ".join(dict.fromkeys([*found.too_small.values(), *found.barred.values()]))
    return Verdict("waiting", f"no further worker can take it ({held} of {_target(draft, model)} placed): {why}")


def _no_mirror(view: View, model: ModelRecord, found: Search) -> str:
    """No worker that may run it knows where to fetch it from."""
    known = {name for worker in found.strange for name in view.workers[worker].mirrors}
    if missing := sources.missing(model.source, model.options, known):
        return f"no worker{' that may run it' if model.workers else ''} knows {missing} of its source"
    return "; ".join(found.strange.values())


def _inputs(found: Search) -> dict[str, int | str]:
    best = max(found.candidates, key=lambda one: max(site.free_bytes for site in one.sites))
    return {
        "needs_bytes": best.wanted.bytes,
        "known_from": best.wanted.source,
        "most_free_bytes": max(site.free_bytes for site in best.sites),
        "on": best.name,
    }


def _why_wanted(draft: Draft, model: ModelRecord) -> str:
    """Why it gets a place."""
    view, held = draft.view, len(_counted(draft, model.id))
    intent = view.intents.get(model.id)
    if intent is not None and intent.want == "loaded" and held < intent.replicas:
        return f"{intent.by or 'an operator'} wants it loaded"
    if held < model.min_replicas:
        return "its entry keeps it loaded"
    if held == 0 and not rules.is_asked_for(view, model):
        return "its worker is being emptied"
    return "jobs wait for it" if held == 0 else "jobs outrun its replicas"


def _assign(draft: Draft, model: ModelRecord, room: Room) -> None:
    worker, wanted = room.candidate.name, room.candidate.wanted
    reason = _why_wanted(draft, model)
    draft.decide(
        "assigned",
        model.id,
        worker,
        reason,
        needs_bytes=wanted.bytes,
        known_from=wanted.source,
        free_bytes=min(site.free_bytes for site in room.sites),
        waiting_s=draft.view.now - (draft.view.waiting_since(model.id) or draft.view.now),
    )
    # The device is named although the worker could choose: only so can its memory be charged.
    draft.assign(worker, model, [site.device.id for site in room.sites], room.bytes, reason)


def _claim(draft: Draft, model: ModelRecord, room: Room, reason: str) -> None:
    """Keep room that is coming for a model, so that nobody later in the order takes it."""
    for site in room.sites:
        site.claimed_bytes += max(1, rules.promise(room.candidate.wanted, site))
    text = reason.format(worker=room.candidate.name)
    draft.blocked[model.id] = Verdict("waiting", text, {"worker": room.candidate.name, "needs_bytes": room.bytes})


def _evict(draft: Draft, model: ModelRecord, room: Room) -> None:
    view, worker = draft.view, room.candidate.name
    names = []
    for victim in room.victims:
        resident, replica = view.models[victim.model], view.replica(worker, victim.model)
        inputs = {"needs_bytes": room.bytes, "frees_bytes": victim.bytes, "used_s": draft.used_s(worker, victim.model)}
        has_failed = rules.has_failed(view, resident, worker, draft.since_s(worker, victim.model))
        if replica is None or has_failed:
            draft.remove(worker, victim.model, f"it does not run, and {model.id} needs the memory", **inputs)
        elif rules.is_busy(view, resident, replica):
            reason = f"it finishes and goes: {rules.is_starving(view, model).replace(' it', ' ' + model.id)}"
            draft.remove(worker, victim.model, reason, **inputs)
        else:
            draft.ask_to_yield(worker, victim.model, f"{model.id} needs the memory", room_for=model.id, **inputs)
        names.append(victim.model)
    _claim(draft, model, room, f"waits for {', '.join(names)} to leave {{worker}}")


# --- 4. places that are to be left ------------------------------------------------------------------------------


def _move(draft: Draft) -> None:
    view = draft.view
    for worker, model in draft.places():
        reason = rules.is_to_leave(view, view.models[model], worker)
        is_emptied = worker in view.drains
        # A worker that stops by itself ends its replicas in order; should it come back, it is to have them again.
        if not reason or (rules.is_drained(view, worker) and not is_emptied):
            continue
        others = _counted(draft, model)
        is_replaced = any(_is_ready(view, other, model) for other in others)
        is_needed = _target(draft, view.models[model]) > 0
        if is_replaced or not is_needed or (is_emptied and not others):
            draft.remove(worker, model, reason)


# --- 5. the catalogue's changes --------------------------------------------------------------------------------


def _follow_catalogue(draft: Draft) -> None:
    view = draft.view
    for worker, model in draft.places():
        record = view.models[model]
        before = view.assigned(worker, model)
        if before is None or before.model == record:
            continue
        if variant(before.model) == variant(record):
            draft.revise(worker, record, before.memory_bytes)
            continue
        # It may take another amount now, of which it has its own and what is free.
        wanted = need(view, record, worker)
        holding = draft.books.holdings.get((worker, model))
        sites = [site for site in draft.books.of_worker(worker) if holding and site.device.id in holding.devices]
        room = min((site.coming_bytes([holding]) for site in sites if holding), default=0)
        draft.revise(worker, record, min(wanted.bytes or room, max(room, 0)))
