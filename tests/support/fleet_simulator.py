"""A fleet in simulated time: workers whose loads and jobs take time, a queue, and the planner at every tick.

Workers keep their own ledger and refuse what does not fit; a refusal is a fault of the plan, and is counted. The
orders of a plan reach a worker one tick later, its records reach the planner one tick later.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import msgspec

from gateway.placement.view import Backlog
from shared.records import Assigned, AssignmentRecord
from tests.support.placement import Paper, overcommitted

TICK_S = 1.0


@dataclass
class Process:
    """A replica as it really is."""

    model: str
    device: str
    bytes: int
    ready_at: float
    started: float
    jobs: list[float] = field(default_factory=list)  # when each will be done
    used: float = 0.0
    is_draining: bool = False


@dataclass
class Request:
    """One job."""

    model: str
    at: float
    job_s: float
    taken: float | None = None


class Simulator:
    """`arrive` requests, `run` time, then look at what was noted."""

    def __init__(self, paper: Paper, load_s: dict[str, float], slots: int = 2) -> None:
        self.paper = paper
        self.load_s = load_s
        self.slots = slots
        self.queue: defaultdict[str, list[Request]] = defaultdict(list)
        self.done: list[Request] = []
        self.processes: dict[tuple[str, str], Process] = {}
        self.faults: list[str] = []
        self.num_loads = 0
        self.changes: list[float] = []  # times at which an assignment changed
        self._sent: dict[str, AssignmentRecord] = {}

    def arrive(self, model: str, job_s: float = 2.0) -> None:
        """A request."""
        self.queue[model].append(Request(model, self.paper.now, job_s))

    def tick(self) -> None:
        """One second."""
        self._serve()
        self._report()
        decided = self.paper.step()
        if any(one.kind in ("assigned", "unloaded", "yielding") for one in decided.decisions):
            self.changes.append(self.paper.now)
        self.faults += overcommitted(self.paper.view())
        self._obey(self._sent)
        self._sent = dict(self.paper.wants)
        self.paper.now += TICK_S

    # --- workers ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        now = self.paper.now
        for process in self.processes.values():
            process.jobs = [end for end in process.jobs if end > now]
            if process.jobs:
                process.used = now
            waiting = self.queue[process.model]
            while process.ready_at <= now and not process.is_draining and waiting and len(process.jobs) < self.slots:
                request = waiting.pop(0)
                request.taken = now
                process.jobs.append(now + request.job_s)
                process.used = now
                self.done.append(request)

    def _obey(self, wants: dict[str, AssignmentRecord]) -> None:
        now = self.paper.now
        for (worker, model), process in list(self.processes.items()):
            place = _place(wants, worker, model)
            if place is not None and not place.unload_if_idle and not process.is_draining:
                continue
            if place is None or (place.unload_if_idle and not process.jobs):
                process.is_draining = True
            if process.is_draining and not process.jobs:
                del self.processes[worker, model]
        for worker, want in wants.items():
            for place in want.models:
                if (worker, place.model.id) not in self.processes and not place.unload_if_idle:
                    self._load(worker, place, now)

    def _load(self, worker: str, place: Assigned, now: float) -> None:
        model = place.model.id
        taken = place.memory_bytes or self.paper.bytes_of(model)
        for device in place.devices:
            total = next(one.total_bytes for one in self.paper.workers[worker].devices if one.id == device)
            held = sum(one.bytes for (at, _), one in self.processes.items() if at == worker and one.device == device)
            if held + taken > total:
                self.faults.append(f"{worker} had to refuse {model} at {now}")
                return
        self.num_loads += 1
        ready = now + self.load_s[model]
        self.processes[worker, model] = Process(model, place.devices[0], taken, ready, now)

    def _report(self) -> None:
        now, paper = self.paper.now, self.paper
        paper.replicas.clear()
        for (worker, model), process in self.processes.items():
            is_ready = process.ready_at <= now
            state = "draining" if process.is_draining else "ready" if is_ready else "loading"
            paper.replica(model, worker, state, device=process.device, reserved_bytes=process.bytes)
            record = paper.replicas[f"{model}@{worker}"]
            record.since_s, record.load_s = process.started, self.load_s[model] if is_ready else 0.0
            record.running, record.last_used_s = len(process.jobs), process.used
            if state == "ready":
                paper.served[model] = now
        paper.backlog = {
            model: Backlog(queued=len(waiting), since_s=waiting[0].at)
            for model, waiting in self.queue.items()
            if waiting
        }

    # --- what is asked of it ---------------------------------------------------------------------------------

    def waits(self) -> list[float]:
        """How long every request waited, those that still wait with the time until now."""
        served = [request.taken - request.at for request in self.done if request.taken is not None]
        return served + [self.paper.now - one.at for waiting in self.queue.values() for one in waiting]

    def num_loading(self, model: str) -> int:
        """How many loads of a model are under way."""
        now = self.paper.now
        return sum(1 for (_, name), one in self.processes.items() if name == model and one.ready_at > now)


def _place(wants: dict[str, AssignmentRecord], worker: str, model: str) -> Assigned | None:
    want = wants.get(worker)
    return next((one for one in want.models if one.model.id == model), None) if want else None


def copy_of(paper: Paper) -> Paper:
    """A second fleet like the first, for another run."""
    other = Paper(paper.eviction.strategy)
    other.models = {id: msgspec.structs.replace(one) for id, one in paper.models.items()}
    other.workers, other.sizes = dict(paper.workers), dict(paper.sizes)
    other.eviction, other.placement = paper.eviction, paper.placement
    return other
