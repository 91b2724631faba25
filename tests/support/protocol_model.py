"""Leaders, agents and the queue as state machines over a store whose messages may be late, lost or doubled.

What decides is the real code: the planner, the leader's memory, the agent's rule about assignments and its ledger.
What is modelled is the rest: the buckets, their mirrors, processes, the lease.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec

from gateway.placement.history import History
from gateway.placement.planner import Plan, plan
from gateway.placement.view import Backlog, Size, View
from shared.records import Assigned, AssignmentRecord, Device, Failure, ReplicaRecord, WorkerRecord
from shared.settings import EvictionSettings, PlacementSettings
from worker.agent.assignment import Assignments
from worker.agent.errors import NotEnoughMemory
from worker.agent.ledger import Ledger

GB = 1 << 30


class Stale(Exception):
    """The key is no longer at that revision."""


class Store:
    """Keys with revisions, and the log of their changes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.revisions: dict[str, int] = {}
        self.log: list[tuple[str, Any]] = []

    def put(self, key: str, value: Any) -> None:
        """Set a key; None deletes it."""
        self.log.append((key, value))
        self.revisions[key] = len(self.log)
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def update(self, key: str, value: Any, revision: int) -> None:
        """Set a key that must still be at this revision. Raises Stale."""
        if self.revisions.get(key, 0) != revision:
            raise Stale
        self.put(key, value)


class Copy:
    """One reader's copy of the store: messages come in order, some late, some twice, some only with a snapshot."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.at = 0
        self.values: dict[str, Any] = {}
        self.revisions: dict[str, int] = {}
        self.on_change: Callable[[str, Any], None] = lambda key, value: None

    def deliver(self, num: int, lose: bool = False, double: bool = False) -> None:
        """The next messages; a lost one is made good when the next one shows the gap."""
        for _ in range(min(num, len(self.store.log) - self.at)):
            if lose and self.at + 1 < len(self.store.log):
                self.snapshot()
                return
            self._apply(self.at)
            if double:
                self._apply(self.at)
            self.at += 1

    def snapshot(self) -> None:
        """Everything, at once: only the latest of each key is seen."""
        latest = {key: index for index, (key, _) in enumerate(self.store.log)}
        for index in sorted(latest.values()):
            self._apply(index)
        self.at = len(self.store.log)

    def _apply(self, index: int) -> None:
        key, value = self.store.log[index]
        if index + 1 <= self.revisions.get(key, 0):
            return
        self.revisions[key] = index + 1
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value
        self.on_change(key, value)

    def kind(self, kind: str) -> dict[str, Any]:
        """The records of a kind."""
        return {key.partition(".")[2]: value for key, value in self.values.items() if key.startswith(f"{kind}.")}


class Placer:
    """A gateway's leader. It may believe that it leads when it no longer does."""

    def __init__(self, store: Store, sizes: dict[str, Size]) -> None:
        self.copy = Copy(store)
        self.history = History()
        self.epoch = 0  # 0: does not lead, as far as it knows
        self.unwritten: list[AssignmentRecord] = []
        self.seen: dict[str, int] = {}  # the revisions that its plan was made on
        self._store, self._sizes = store, sizes

    def view(self, backlog: dict[str, Backlog], now: float) -> View:
        """What it sees."""
        kinds = {"workers": "worker", "replicas": "replica", "models": "model", "wants": "want", "intents": "intent"}
        parts = {name: self.copy.kind(kind) for name, kind in kinds.items()}
        fleet: Any = SimpleNamespace(**parts, drains=self.copy.kind("drain"), measured={})
        self.history.observe(fleet, now)
        return self.history.view(
            fleet,
            backlog,
            self._sizes,
            now,
            is_settled=True,
            placement=PlacementSettings(starvation_bound_s=20.0),
            eviction=EvictionSettings(min_residency_s=2.0),
        )

    def decide(self, backlog: dict[str, Backlog], now: float) -> Plan | None:
        """Plan; the writes come one at a time, in steps of their own."""
        if not self.epoch or self.unwritten:
            return None
        decided = plan(self.view(backlog, now), self.epoch, claim=True)
        self.unwritten = list(decided.changes)
        self.seen = {f"want.{one.worker}": self.copy.revisions.get(f"want.{one.worker}", 0) for one in decided.changes}
        return decided

    def write_one(self) -> None:
        """The next write of the plan; after a refusal the rest is void."""
        if self.unwritten:
            record = self.unwritten.pop(0)
            key = f"want.{record.worker}"
            try:
                self._store.update(key, record, self.seen[key])
            except Stale:
                self.unwritten = []
            else:
                self.copy.snapshot()  # it waits until its mirror shows its own write

    def die(self) -> None:
        """A new process in its place."""
        self.__init__(self._store, self._sizes)  # type: ignore[misc]


@dataclass
class Process:
    """A replica on a host."""

    id: str
    place: Assigned
    state: str = "loading"
    running: int = 0
    since: float = 0.0
    ready: float = 0.0
    used: float = 0.0


@dataclass
class Agent:
    """A host: the real rule about assignments, the real ledger, and processes."""

    store: Store
    name: str
    total: int
    takes: dict[str, int] = field(default_factory=dict)  # bytes that models really take, where the estimate is wrong
    assignments: Assignments = field(default_factory=Assignments)
    processes: dict[str, Process] = field(default_factory=dict)
    yielded: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    is_up: bool = True
    num_started: int = 0
    num_refusals: int = 0
    highest: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.ledger = Ledger({"cpu": self.total}, 4)
        self.copy = Copy(self.store)
        self.copy.on_change = self._on_change

    def _on_change(self, key: str, value: Any) -> None:
        if key != f"want.{self.name}" or value is None:
            return
        if self.assignments.accept(value):
            assert (value.epoch, value.generation) > self.highest, "an older assignment was followed"
            self.highest = (value.epoch, value.generation)

    def act(self, now: float) -> None:
        """Follow the assignment by one step for each model."""
        if not self.is_up:
            return
        wanted = self.assignments.models
        for model, process in list(self.processes.items()):
            place = wanted.get(model)
            goes = place is None or (place.unload_if_idle and not process.running)
            if goes and process.state == "ready":
                process.state = "draining"
            if process.state == "draining" and place is not None and place.unload_if_idle:
                self.yielded.add(model)
            if (goes and process.state == "loading") or (process.state == "draining" and not process.running):
                self.ledger.release(process.id)
                del self.processes[model]
            elif process.state == "loading" and now - process.since >= 2.0:
                process.state, process.ready, process.used = "ready", now, now
                self.failures.pop(model, None)
        self.yielded &= {model for model, place in wanted.items() if place.unload_if_idle}
        self.failures = {model: one for model, one in self.failures.items() if model in wanted}
        for model, place in wanted.items():
            failure = self.failures.get(model)
            if model in self.processes or place.unload_if_idle or (failure and failure.retry_at_s > now):
                continue
            self._start(model, place, now)
        self.report(now)

    def _start(self, model: str, place: Assigned, now: float) -> None:
        needed = self.takes.get(model, 0)
        if place.memory_bytes < needed:  # it runs out of memory, or is not even started with so little
            self.failures[model] = Failure(
                model=model,
                reason="it takes more",
                at_s=now,
                retry_at_s=now + 1.0,
                kind="underestimated",
                needed_bytes=needed,
                free_bytes=place.memory_bytes,
            )
            return
        self.num_started += 1
        id = f"{self.name}-{model}-{self.num_started}"
        free = self.total - self.ledger.reserved_bytes("cpu")
        try:
            self.ledger.reserve(id, "cpu", place.memory_bytes, cores=1, free_bytes=free)
        except NotEnoughMemory as error:
            self.num_refusals += 1
            self.failures[model] = Failure(
                model=model,
                reason=str(error),
                at_s=now,
                retry_at_s=now + 1.0,
                kind="no_memory",
                needed_bytes=error.needed_bytes,
            )
            return
        self.ledger.measured(id, place.memory_bytes)
        self.processes[model] = Process(id, place, since=now)

    def report(self, now: float) -> None:
        """Write its records; take back those of processes that are gone."""
        free = self.total - self.ledger.reserved_bytes("cpu")
        device = Device(id="cpu", kind="cpu", name="cpu", total_bytes=self.total, free_bytes=free)
        mine = {one.id: model for model, one in self.processes.items()}
        for key in [key for key in self.store.values if key.startswith(f"replica.{self.name}-")]:
            if key.partition(".")[2] not in mine:
                self.store.put(key, None)
        for id, model in mine.items():
            one = self.processes[model]
            record = ReplicaRecord(
                id=id,
                model=model,
                worker=self.name,
                state=msgspec.convert(one.state, str),  # type: ignore[arg-type]
                devices=["cpu"],
                reserved_bytes=one.place.memory_bytes,
                running=one.running,
                since_s=one.since,
                load_s=one.ready - one.since if one.ready else 0.0,
                last_used_s=one.used,
            )
            if self.store.values.get(f"replica.{id}") != record:
                self.store.put(f"replica.{id}", record)
        worker = WorkerRecord(
            name=self.name,
            incarnation="i",
            host="h",
            devices=[device],
            failures=list(self.failures.values()),
            generation=self.assignments.generation,
        )
        if self.store.values.get(f"worker.{self.name}") != worker:
            self.store.put(f"worker.{self.name}", worker)

    def die(self) -> dict[str, int]:
        """Everything on the host ends at once, its records expire. Returns the jobs that were running, by model."""
        lost = {model: one.running for model, one in self.processes.items()}
        self.is_up = False
        self.processes.clear()
        self.ledger = Ledger({"cpu": self.total}, 4)
        self.assignments, self.highest, self.yielded, self.failures = Assignments(), (0, 0), set(), {}
        for key in [
            key for key in self.store.values if key.startswith((f"replica.{self.name}-", f"worker.{self.name}"))
        ]:
            self.store.put(key, None)
        return lost

    def start(self) -> None:
        """A new agent, which reads the whole bucket first."""
        self.is_up = True
        self.copy = Copy(self.store)
        self.copy.on_change = self._on_change
        self.copy.snapshot()
