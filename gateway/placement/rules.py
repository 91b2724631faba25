"""The rules of placement, one function each. Pure.

A rule that speaks for or against something answers True when it applies, or a sentence that says so ("" when it does
not); a rule that orders answers a number, the lower the sooner. A rule that answers False, "" or 0 to everything is a
rule taken out: the tests do so with each of them, and a scenario must fail for every one.

`planner` calls them in the order of its decision tree.
"""

from gateway.placement.memory import Need, Site
from gateway.placement.view import Backlog, View
from shared import sources
from shared.records import ModelRecord, ReplicaRecord, WorkerRecord

MAX_RAISES = 3  # so often others are displaced for a model that took more than was thought


# --- how many replicas -----------------------------------------------------------------------------------------


def num_wanted(view: View, model: ModelRecord) -> int:
    """Replicas that are to be there without demand: by an operator's intent, or the entry's min_replicas."""
    intent = view.intents.get(model.id)
    return max(model.min_replicas, intent.replicas if intent and intent.want == "loaded" else 0)


def is_asked_for(view: View, model: ModelRecord) -> bool:
    """Jobs wait for it."""
    return view.waiting_since(model.id) is not None


def is_overrun(view: View, model: ModelRecord, num_places: int, num_ready: int) -> bool:
    """Its replicas are all serving, jobs have waited beside them for a while, and it may have one more."""
    jobs = view.backlog.get(model.id, Backlog())
    return (
        num_places < model.max_replicas
        and 0 < num_ready == num_places
        and jobs.queued > 0
        and view.now - jobs.since_s >= view.placement.scale_up_after_s
    )


def is_above_limit(view: View, model: ModelRecord, num_places: int) -> bool:
    """More replicas than anybody wants and than demand may bring."""
    return num_places > max(num_wanted(view, model), model.max_replicas)


def is_spare(view: View, model: ModelRecord, num_places: int, idle_s: float) -> bool:
    """A replica above the wanted number that was idle for a while; the last one is `is_unused`'s business."""
    above = num_places > max(1, num_wanted(view, model))
    return above and idle_s >= view.placement.scale_down_after_s


def is_unused(view: View, model: ModelRecord, idle_s: float) -> bool:
    """Nobody wants it, and it got no job for as long as it is kept alive."""
    keep_s = model.keep_alive_s or view.placement.keep_alive_s
    return num_wanted(view, model) == 0 and keep_s > 0 and idle_s >= keep_s


# --- why a place is given up -----------------------------------------------------------------------------------


def is_lost(view: View, worker: str) -> str:
    """The worker is gone."""
    return f"{worker} is lost" if worker in view.lost else ""


def is_unknown(view: View, model: str) -> str:
    """The catalogue does not have it."""
    return "" if model in view.models else "the catalogue no longer has it"


def is_unwanted(view: View, model: str) -> str:
    """An operator wants it nowhere."""
    intent = view.intents.get(model)
    return f"{intent.by or 'an operator'} wants it unloaded" if intent and intent.want == "unloaded" else ""


def is_forbidden(model: ModelRecord, worker: str) -> str:
    """Its entry names other workers."""
    is_so = model.workers and worker not in model.workers
    return f"its entry allows only {', '.join(sorted(model.workers))}" if is_so else ""


def is_wanted_elsewhere(view: View, model: ModelRecord, worker: str) -> str:
    """An operator's intent names other workers."""
    intent = view.intents.get(model.id)
    if intent is not None and intent.want == "loaded" and intent.on and worker not in intent.on:
        return f"{intent.by or 'an operator'} wants it on {', '.join(sorted(intent.on))}"
    return ""


def is_drained(view: View, worker: str) -> str:
    """The worker is being emptied, by an operator or because it is about to stop."""
    if drain := view.drains.get(worker):
        return f"{drain.by or 'an operator'} drains {worker}"
    record = view.workers.get(worker)
    return f"{worker} is stopping" if record is not None and record.state == "draining" else ""


def is_barred(view: View, model: ModelRecord, worker: str) -> str:
    """It may not go there."""
    return is_forbidden(model, worker) or is_wanted_elsewhere(view, model, worker)


def is_to_leave(view: View, model: ModelRecord, worker: str) -> str:
    """It may stay only until it is ready elsewhere."""
    return is_wanted_elsewhere(view, model, worker) or is_drained(view, worker)


def has_failed(view: View, model: ModelRecord, worker: str, since_s: float) -> str:
    """The last load there failed not long ago, in the place that it has since then, and it does not run there now."""
    failure = view.failures.get((worker, model.id))
    replica = view.replica(worker, model.id)
    if failure is None or failure.at_s < since_s or (replica is not None and replica.state == "ready"):
        return ""
    return f"it failed on {worker}: {failure.reason}"


def was_refused(view: View, model: ModelRecord, worker: str) -> str:
    """The worker has the last word on its memory, and said no."""
    failure = view.failures.get((worker, model.id))
    is_refusal = failure is not None and failure.kind in ("no_memory", "does_not_fit")
    return f"{worker} refused it: {failure.reason}" if failure is not None and is_refusal else ""


def is_underpromised(view: View, model: ModelRecord, worker: str) -> str:
    """It takes more than it was promised there: it is to be promised what it takes, with whatever that displaces."""
    failure, place = view.failures.get((worker, model.id)), view.assigned(worker, model.id)
    if failure is None or place is None or failure.kind != "underestimated":
        return ""
    return f"it takes more than it was promised: {failure.reason}" if place.memory_bytes < failure.needed_bytes else ""


# --- whether a worker could ever run a model -------------------------------------------------------------------


def has_too_few_devices(model: ModelRecord, worker: WorkerRecord) -> str:
    """It is spread over more devices than the worker has."""
    if len(worker.devices) >= model.devices:
        return ""
    return f"{worker.name} has {len(worker.devices)} of the {model.devices} devices that it takes"


def lacks_mirror(model: ModelRecord, worker: WorkerRecord) -> str:
    """Its settings do not define the hub that the model's source names: it could not be fetched there."""
    missing = sources.missing(model.source, model.options, worker.mirrors)
    return f"{worker.name} does not know {missing}" if missing else ""


def is_too_small(model: ModelRecord, wanted: Need, site: Site) -> str:
    """Not even on the empty device."""
    least = max(wanted.minimum_bytes, model.memory_floor_bytes)
    if site.device.total_bytes >= least:
        return ""
    return f"needs {gb(least)} on {site.device.id} of {site.worker}, which has {gb(site.device.total_bytes)}"


def is_unsized(view: View, model: ModelRecord, wanted: Need) -> str:
    """Nobody knows how much it takes, and a worker is about to say so."""
    return "how much it takes is being found out" if model.id in view.unsized and not wanted.is_known else ""


# --- whether it fits now ---------------------------------------------------------------------------------------


def is_short(wanted: Need, site: Site) -> str:
    """The device has not enough that is promised to nobody; for a model of unknown size: nothing at all."""
    free = site.free_bytes
    if free >= max(1, promise(wanted, site)):
        return ""
    needs = gb(promise(wanted, site)) if wanted.is_known else "an unknown amount"
    return f"needs {needs} on {site.device.id} of {site.worker}, where {gb(free)} is free"


def promise(wanted: Need, site: Site) -> int:
    """What a load would be granted of a device: what it needs, or the whole device where it could live with less."""
    return min(wanted.bytes, site.device.total_bytes)


# --- which of the workers that could ---------------------------------------------------------------------------


def after_failure(view: View, model: ModelRecord, worker: str) -> int:
    """Workers where it did not fail first."""
    return int((worker, model.id) in view.failures)


def by_crowd(num_models: int) -> int:
    """Workers with fewer models first: they share the cores."""
    return num_models


def by_room(free_bytes: int) -> int:
    """Then those with most room now, not those with the largest devices."""
    return -free_bytes


# --- who may be displaced --------------------------------------------------------------------------------------


def is_pinned(view: View, resident: ModelRecord) -> str:
    """Never, by its entry or an operator's intent."""
    intent = view.intents.get(resident.id)
    by_intent = intent is not None and intent.want == "loaded" and intent.pinned
    return f"{resident.id} is pinned" if resident.pinned or by_intent else ""


def is_of_higher_class(resident: ModelRecord, incoming: ModelRecord) -> str:
    """A model displaces its own class and those below, in both directions."""
    if resident.residency <= incoming.residency:
        return ""
    return f"{resident.id} is of class {resident.residency}, above {incoming.residency}"


def is_needed(view: View, resident: ModelRecord, incoming: ModelRecord, num_places: int) -> str:
    """Somebody wants it there, and it would be loaded again: only a higher class goes before."""
    if num_places > num_wanted(view, resident) or resident.residency < incoming.residency:
        return ""
    return f"{resident.id} is wanted loaded"


def is_loading(replica: ReplicaRecord | None) -> str:
    """What is under way is not thrown away."""
    if replica is None:
        return "it is about to load"
    return f"{replica.model} is loading" if replica.state == "loading" else ""


def is_busy(view: View, resident: ModelRecord, replica: ReplicaRecord | None) -> str:
    """Jobs run on it, or wait for it."""
    if replica is not None and (replica.running or replica.waiting):
        return f"{resident.id} runs {replica.running + replica.waiting} jobs"
    if queued := view.backlog.get(resident.id, Backlog()).queued:
        return f"{queued} jobs wait for {resident.id}"
    return ""


def is_fresh(view: View, resident: ModelRecord, served_s: float, load_s: float) -> str:
    """It has not served for the minimum yet, nor for as long as its load took: else loads eat the time to serve."""
    least = residency_s(view, load_s)
    return f"{resident.id} serves for {served_s:.1f} s of at least {least:.1f} s" if served_s < least else ""


def residency_s(view: View, load_s: float) -> float:
    """How long a model serves before another may displace it."""
    return max(view.eviction.min_residency_s, min(load_s, view.placement.starvation_bound_s))


def is_starving(view: View, incoming: ModelRecord) -> str:
    """It waited so long that even the busy give way."""
    since = view.waiting_since(incoming.id)
    if since is None or view.now - since < view.placement.starvation_bound_s:
        return ""
    return f"jobs have waited {view.now - since:.0f} s for it"


def is_unproven(view: View, incoming: ModelRecord) -> str:
    """It failed somewhere, and not for want of memory, or for want of more and more: what works is not unloaded for
    what may fail again.
    """
    for (worker, model), failure in view.failures.items():
        is_insatiable = failure.kind == "underestimated" and failure.attempts > MAX_RAISES
        if model == incoming.id and (not failure.kind or is_insatiable):
            return f"it failed on {worker}: {failure.reason}"
    return ""


# --- in which order --------------------------------------------------------------------------------------------


def after_yielding(is_yielding: bool) -> int:
    """Whoever was asked to go already goes before another is asked."""
    return int(not is_yielding)


def by_strategy(view: View, resident: ModelRecord, used_s: float) -> float:
    """Strategy lru: the one used longest ago first. Strategy priority: the lowest priority first."""
    return float(resident.priority) if view.eviction.strategy == "priority" else used_s


def by_use(used_s: float) -> float:
    """Among equals, the one used longest ago."""
    return used_s


def after_promised_room(has_room_made: bool) -> int:
    """Those for whom room was made come before those who would take it."""
    return int(not has_room_made)


def after_starving(view: View, model: ModelRecord) -> int:
    """Then those that waited too long."""
    return int(not is_starving(view, model))


def by_class(model: ModelRecord) -> int:
    """Then the higher residency class."""
    return -model.residency


def by_age(since_s: float) -> float:
    """Then whoever waits longest: first come, first served, and all jobs of a model together."""
    return since_s


def gb(num_bytes: int) -> str:
    """A size for people."""
    return f"{num_bytes / 1e9:.2f} GB"
