"""A planner as load-on-miss servers have it, to be measured beside the real one.

``python -m tests.support.naive_planner`` is a gateway that places by it.

A model that is asked for and not there is loaded at once; while it does not fit, the model used longest ago goes, busy
or not. Nothing is kept for whoever waits, nobody has a minimum of time to serve, and waiting demand has no order but
that of its arrival.
"""

import sys

from gateway import __main__ as gateway_main
from gateway.placement import leader, rules, search
from gateway.placement.draft import Draft
from gateway.placement.planner import Plan, View
from gateway.placement.standing import standing
from shared.records import ModelRecord


def naive_plan(view: View, epoch: int, *, claim: bool = False) -> Plan:
    """In place of `gateway.placement.planner.plan`."""
    draft = Draft(view)
    for worker, model in draft.places():
        if reason := rules.is_lost(view, worker) or rules.is_unknown(view, model):
            draft.remove(worker, model, reason)
    missed = [one for one in view.models.values() if rules.is_asked_for(view, one) and not draft.holders(one.id)]
    for model in sorted(missed, key=lambda one: view.waiting_since(one.id) or 0.0):
        _load_on_miss(draft, model)
    verdicts = {model: standing(draft, model) for model in view.models}
    return Plan(draft.changes(epoch, claim), draft.decisions, verdicts, 0.0)


def _load_on_miss(draft: Draft, model: ModelRecord) -> None:
    found = search.survey(draft, model)
    if not found.candidates or rules.is_unsized(draft.view, model, found.candidates[0].wanted):
        return
    if room := search.room_now(draft, model, found):
        draft.assign(room.candidate.name, model, [site.device.id for site in room.sites], room.bytes, "a miss")
        draft.decide("assigned", model.id, room.candidate.name, "a miss")
        return
    if search.room_coming(draft, model, found):
        return
    names = {candidate.name for candidate in found.candidates}
    residents = [(worker, other) for worker, other in draft.places() if worker in names]
    residents = [place for place in residents if _is_loaded(draft, *place)]
    for worker, other in sorted(residents, key=lambda place: draft.used_s(*place)):
        draft.remove(worker, other, f"the one used longest ago, for {model.id}")
        if search.room_coming(draft, model, found):
            return


def _is_loaded(draft: Draft, worker: str, model: str) -> bool:
    replica = draft.view.replica(worker, model)
    return replica is not None and replica.state == "ready"


if __name__ == "__main__":
    leader.plan = naive_plan  # type: ignore[assignment]
    sys.exit(gateway_main.main())
