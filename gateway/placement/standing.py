"""How a model stands when a plan is made: one state, and the reason in words. Pure."""

from gateway.placement import rules
from gateway.placement.draft import Draft, Verdict
from gateway.placement.view import View


def standing(draft: Draft, model: str) -> Verdict:
    """The word on one model."""
    view = draft.view
    if reason := rules.is_unknown(view, model):
        return Verdict("unknown", reason)
    if reason := rules.is_unwanted(view, model):
        return Verdict("unloaded", reason)
    holders = draft.holders(model)
    states = {worker: _state(view, worker, model) for worker in holders}
    order = ("ready", "loading", "planned", "failed")
    state = next((one for one in order if one in states.values()), "")
    where = f"on {', '.join(holders)}" if holders else ""
    if state == "failed":
        failure = next(one for (worker, name), one in view.failures.items() if name == model and worker in states)
        where = f"{where}: {failure.reason} (attempt {failure.attempts})"
    if blocked := draft.blocked.get(model):
        reason = f"{where}; {blocked.reason}" if where else blocked.reason
        return Verdict(state or blocked.state, reason, blocked.inputs)
    if state:
        return Verdict(state, where)
    if any(one.model == model for one in draft.books.holdings.values()):
        return Verdict("draining", "it is being unloaded")
    return Verdict("cold", "nobody asked for it")


def _state(view: View, worker: str, model: str) -> str:
    replica = view.replica(worker, model)
    if replica is not None and replica.state in ("ready", "loading"):
        return replica.state
    return "failed" if (worker, model) in view.failures else "planned"
