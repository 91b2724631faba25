"""Where a model can go: the workers that could run it, those where it fits now, and those where others would give way.

Pure. Nothing is changed here; the planner chooses and acts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.placement import rules
from gateway.placement.draft import Draft
from gateway.placement.memory import Holding, Need, Site, need
from shared.records import ModelRecord, WorkerRecord


@dataclass
class Candidate:
    """A worker that could run the model, if it had the memory free."""

    worker: WorkerRecord
    wanted: Need
    sites: list[Site]  # devices that are large enough, those with most room first
    objection: str = ""  # why not now

    @property
    def name(self) -> str:
        """The worker's."""
        return self.worker.name


@dataclass
class Room:
    """Where it goes, or will go."""

    candidate: Candidate
    sites: list[Site]
    victims: list[Holding] = field(default_factory=list)  # that have to go first

    @property
    def bytes(self) -> int:
        """What is promised on each device."""
        return min((rules.promise(self.candidate.wanted, site) for site in self.sites), default=0)


@dataclass
class Search:
    """The workers for one model, sorted into those that could ever run it and those that could not, with reasons."""

    candidates: list[Candidate] = field(default_factory=list)
    too_small: dict[str, str] = field(default_factory=dict)  # by worker: could never
    strange: dict[str, str] = field(default_factory=dict)  # those of them that do not know where to fetch it from
    barred: dict[str, str] = field(default_factory=dict)  # by worker: may not, or not now


def survey(draft: Draft, model: ModelRecord) -> Search:
    """Look at every worker."""
    view, found = draft.view, Search()
    for worker in sorted(view.workers.values(), key=lambda one: one.name):
        name = worker.name
        # 1. May it?
        if bar := rules.is_barred(view, model, name) or rules.is_drained(view, name):
            found.barred[name] = bar
            continue
        # 2. Could it ever?
        wanted = need(view, model, name)
        sites = draft.books.of_worker(name)
        small = [(site, rules.is_too_small(model, wanted, site)) for site in sites]
        fitting = [site for site, objection in small if not objection]
        if objection := rules.lacks_mirror(model, worker):
            found.too_small[name] = found.strange[name] = objection
            continue
        if objection := rules.has_too_few_devices(model, worker):
            found.too_small[name] = objection
            continue
        if len(fitting) < model.devices:
            found.too_small[name] = next((text for _, text in small if text), f"{name} has no device")
            continue
        # 3. A worker where it is, or is still leaving, takes it once.
        if draft.has(name, model.id):
            found.barred[name] = f"it is on {name} already, and a worker runs one replica of a model"
            continue
        if (name, model.id) in draft.books.holdings:
            found.barred[name] = f"it is still leaving {name}"
            continue
        fitting.sort(key=lambda site: (rules.by_room(site.free_bytes), site.device.id))
        found.candidates.append(Candidate(worker, wanted, fitting))
    return found


def room_now(draft: Draft, model: ModelRecord, found: Search) -> Room | None:
    """The best worker where it fits beside everything that is promised. Leaves objections with the others."""
    rooms: list[Room] = []
    for candidate in found.candidates:
        short = {site.device.id: rules.is_short(candidate.wanted, site) for site in candidate.sites}
        free = [site for site in candidate.sites if not short[site.device.id]]
        if refused := rules.was_refused(draft.view, model, candidate.name):
            candidate.objection = refused
        elif len(free) < model.devices:
            candidate.objection = next(text for text in short.values() if text)
        else:
            rooms.append(Room(candidate, free[: model.devices]))
    return min(rooms, key=lambda room: _rank(draft, model, room.candidate), default=None)


def _rank(draft: Draft, model: ModelRecord, candidate: Candidate) -> tuple[int, int, int, str]:
    return (
        rules.after_failure(draft.view, model, candidate.name),
        rules.by_crowd(draft.num_models(candidate.name)),
        rules.by_room(max(site.free_bytes for site in candidate.sites)),
        candidate.name,
    )


def room_coming(draft: Draft, model: ModelRecord, found: Search) -> Room | None:
    """The best worker where it fits as soon as what is leaving is gone."""
    rooms = []
    for candidate in found.candidates:
        enough = _with_room(candidate, ())
        if len(enough) >= model.devices and any(one.is_leaving for site in enough for one in site.holdings):
            rooms.append(Room(candidate, enough[: model.devices]))
    return min(rooms, key=lambda room: _rank(draft, model, room.candidate), default=None)


def is_settling(draft: Draft, model: ModelRecord, found: Search) -> str:
    """On a worker that it may go to, a load is under way of which nobody knows yet what it leaves."""
    for candidate in found.candidates:
        doubtful = [site for site in candidate.sites if site.is_in_doubt]
        if doubtful and not rules.was_refused(draft.view, model, candidate.name):
            loading = next(one.model for one in doubtful[0].holdings if not one.is_known)
            return f"how much {loading} leaves on {doubtful[0].device.id} of {candidate.name} is not known yet"
    return ""


def room_by_eviction(draft: Draft, model: ModelRecord, found: Search) -> Room | None:
    """The worker where the least is lost by displacing others. Leaves objections with those where nothing helps."""
    rooms: list[Room] = []
    for candidate in found.candidates:
        victims: list[Holding] = []
        objections: list[str] = []
        for holding in _residents(candidate.sites):
            objection = objection_to_displacing(draft, holding, model)
            if objection:
                objections.append(objection)
            else:
                victims.append(holding)
        victims.sort(key=lambda one: _order(draft, one))
        chosen: list[Holding] = []
        for victim in victims:
            if len(_with_room(candidate, chosen)) >= model.devices:
                break
            chosen.append(victim)
        if len(_with_room(candidate, chosen)) < model.devices:
            if objections:
                candidate.objection = f"{candidate.objection}; {'; '.join(objections)}".strip("; ")
            continue
        for victim in list(chosen):  # whoever does not help stays, the one used last first
            rest = [one for one in chosen if one is not victim]
            if len(_with_room(candidate, rest)) >= model.devices:
                chosen = rest
        if chosen:  # else it is not memory that is missing
            rooms.append(Room(candidate, _with_room(candidate, chosen)[: model.devices], chosen))
    return min(rooms, key=lambda room: _loss(draft, model, room), default=None)


def objection_to_displacing(draft: Draft, holding: Holding, incoming: ModelRecord) -> str:
    """Why a resident must not give way to this model; empty when it may. Notes when that will be different."""
    view, worker = draft.view, holding.worker
    resident = view.models.get(holding.model)
    if resident is None or not draft.has(worker, holding.model):
        return f"{holding.model} is leaving already"
    # 1. What no waiting changes.
    lasting = (
        rules.is_pinned(view, resident)
        or rules.is_of_higher_class(resident, incoming)
        or rules.is_needed(view, resident, incoming, len(draft.holders(resident.id)))
    )
    if lasting:
        return lasting
    # 2. What does not run, and is only tried again and again, holds nothing against others.
    replica = view.replica(worker, resident.id)
    has_failed = rules.has_failed(view, resident, worker, draft.since_s(worker, resident.id))
    if has_failed and (replica is None or replica.state != "loading"):
        return ""
    # 3. What ends by itself.
    if objection := rules.is_loading(replica):
        return objection
    assert replica is not None
    served = draft.served_s(replica)
    if objection := rules.is_fresh(view, resident, served, replica.load_s):
        draft.wake(view.now + rules.residency_s(view, replica.load_s) - served)
        return objection
    busy = rules.is_busy(view, resident, replica)
    return "" if busy and rules.is_starving(view, incoming) else busy


def _residents(sites: Iterable[Site]) -> list[Holding]:
    seen = {id(one): one for site in sites for one in site.holdings if not one.is_leaving}
    return list(seen.values())


def _with_room(candidate: Candidate, leaving: Iterable[Holding]) -> list[Site]:
    """Devices where it fits once what leaves, and `leaving` as well, is gone."""
    leaving = list(leaving)
    return [
        site for site in candidate.sites if site.coming_bytes(leaving) >= max(1, rules.promise(candidate.wanted, site))
    ]


def _order(draft: Draft, holding: Holding) -> tuple[int, float, float, str]:
    resident, used = draft.view.models[holding.model], draft.used_s(holding.worker, holding.model)
    return (
        rules.after_yielding(draft.was_yielding(holding.worker, holding.model)),
        rules.by_strategy(draft.view, resident, used),
        rules.by_use(used),
        holding.model,
    )


def _loss(draft: Draft, model: ModelRecord, room: Room) -> tuple[object, ...]:
    """The dearest of those that would go; then how many; then the worker as for a free place."""
    dearest = max((_order(draft, victim) for victim in room.victims), default=(0, 0.0, 0.0, ""))
    failed = rules.after_failure(draft.view, model, room.candidate.name)
    return (failed, *dearest[:3], len(room.victims), *_rank(draft, model, room.candidate))
