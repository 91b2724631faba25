"""The lifecycle protocol under everything that can go wrong: messages late, lost and doubled, leaders and hosts killed.

At every step: no host holds more than it has, no model runs twice on a host, no older assignment is followed, and
what a deposed leader still writes after its successor's first word changes nothing. At the end, with the faults gone,
every job is done.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.placement.view import Backlog, Size
from shared.records import DrainRecord, IntentRecord, ModelRecord
from tests.support.protocol_model import GB, Agent, Placer, Store

SLOTS = 2
indices = st.integers(0, 5)


class Protocol(RuleBasedStateMachine):
    """Two gateways, three hosts, five models, of which some take more than their files tell."""

    @initialize(
        totals=st.lists(st.integers(4, 10), min_size=1, max_size=3),
        sizes=st.lists(st.integers(1, 8), min_size=2, max_size=5),
        excess=st.lists(st.sampled_from((0, 0, 1, 3)), min_size=5, max_size=5),
    )
    def begin(self, totals: list[int], sizes: list[int], excess: list[int]) -> None:
        self.store, self.now = Store(), 1000.0
        self.sizes = {f"m{n}": Size(minimum_bytes=size * GB, wanted_bytes=size * GB) for n, size in enumerate(sizes)}
        self.takes = {f"m{n}": (size + excess[n]) * GB for n, size in enumerate(sizes)}
        self.agents = [Agent(self.store, f"w{n}", total * GB, dict(self.takes)) for n, total in enumerate(totals)]
        self.placers = [Placer(self.store, self.sizes) for _ in range(2)]
        self.leader, self.epoch = 0, 1
        self.placers[0].epoch = 1
        self.queue = dict.fromkeys(self.sizes, 0)
        self.since: dict[str, float] = {}
        self.done = 0
        for model in self.sizes:
            self.store.put(f"model.{model}", ModelRecord(id=model, source="s"))
        for agent in self.agents:
            agent.report(self.now)

    def backlog(self) -> dict[str, Backlog]:
        return {
            model: Backlog(queued=number, since_s=self.since[model]) for model, number in self.queue.items() if number
        }

    # --- the world -------------------------------------------------------------------------------------------

    @rule(index=indices, number=st.integers(1, 3))
    def jobs_come(self, index: int, number: int) -> None:
        model = f"m{index % len(self.sizes)}"
        if any(agent.total >= self.takes[model] for agent in self.agents):
            self.queue[model] += number
            self.since.setdefault(model, self.now)

    @rule(index=indices)
    def clients_leave(self, index: int) -> None:
        model = f"m{index % len(self.sizes)}"
        self.queue[model] = 0
        self.since.pop(model, None)

    @rule(seconds=st.floats(0.1, 6.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(index=indices)
    def an_operator_loads(self, index: int) -> None:
        model = f"m{index % len(self.sizes)}"
        self.store.put(f"intent.{model}", IntentRecord(model=model, want="loaded", by="ann", at_s=self.now))

    @rule(index=indices)
    def an_operator_forgets(self, index: int) -> None:
        self.store.put(f"intent.m{index % len(self.sizes)}", None)

    @rule(index=indices, undo=st.booleans())
    def an_operator_drains(self, index: int, undo: bool) -> None:
        worker = self.agents[index % len(self.agents)].name
        self.store.put(f"drain.{worker}", None if undo else DrainRecord(worker=worker, by="ann"))

    # --- messages --------------------------------------------------------------------------------------------

    @rule(index=indices, num=st.integers(1, 6), lose=st.booleans(), double=st.booleans())
    def a_leader_hears(self, index: int, num: int, lose: bool, double: bool) -> None:
        self.placers[index % 2].copy.deliver(num, lose, double)

    @rule(index=indices, num=st.integers(1, 6), lose=st.booleans(), double=st.booleans())
    def a_host_hears(self, index: int, num: int, lose: bool, double: bool) -> None:
        agent = self.agents[index % len(self.agents)]
        if agent.is_up:
            agent.copy.deliver(num, lose, double)

    @rule(index=indices)
    def a_leader_works(self, index: int) -> None:
        """Without a fault in between: else few runs would come far."""
        placer = self.placers[index % 2]
        placer.copy.snapshot()
        self.a_leader_plans(index)
        while placer.unwritten:
            self.a_leader_writes(index)

    @rule(index=indices)
    def a_host_works(self, index: int) -> None:
        agent = self.agents[index % len(self.agents)]
        if agent.is_up:
            agent.copy.snapshot()
            self.a_host_acts(index)
            self.a_host_takes_jobs(index)
            agent.report(self.now)

    # --- leaders ---------------------------------------------------------------------------------------------

    @rule(index=indices)
    def a_leader_plans(self, index: int) -> None:
        """Only while it holds the lease, by its own clock, which runs out before another can have it."""
        if index % 2 == self.leader:
            self.placers[self.leader].decide(self.backlog(), self.now)

    @rule(index=indices)
    def a_leader_writes(self, index: int) -> None:
        placer = self.placers[index % 2]
        current = self.placers[self.leader]
        is_deposed = placer is not current
        claimed = {
            key: value
            for key, value in self.store.values.items()
            if key.startswith("want.") and value.epoch == self.epoch and key in current.copy.values
        }
        placer.write_one()
        if is_deposed:
            now = {key: self.store.values[key] for key in claimed}
            assert now == claimed, "a deposed leader changed an assignment"

    @rule()
    def the_lease_passes_on(self) -> None:
        """The old leader does not know it yet."""
        self.leader = 1 - self.leader
        self.epoch += 1
        self.placers[self.leader].unwritten = []
        self.placers[self.leader].epoch = self.epoch

    @rule(num=st.integers(0, 2))
    def a_leader_is_deposed_between_two_writes(self, num: int) -> None:
        """It is stopped, its successor has its first word, it goes on where it was."""
        old = self.leader
        self.placers[old].copy.snapshot()
        self.a_leader_plans(old)
        for _ in range(num):
            self.a_leader_writes(old)
        self.the_lease_passes_on()
        self.a_leader_works(self.leader)
        while self.placers[old].unwritten:
            self.a_leader_writes(old)

    @rule(index=indices)
    def a_leader_learns_that_it_was_deposed(self, index: int) -> None:
        if index % 2 != self.leader:
            self.placers[index % 2].epoch = 0

    @rule(index=indices)
    def a_leader_dies(self, index: int) -> None:
        """In the middle of its writes, perhaps."""
        self.placers[index % 2].die()
        if index % 2 == self.leader:
            self.the_lease_passes_on()

    # --- hosts -----------------------------------------------------------------------------------------------

    @rule(index=indices)
    def a_host_acts(self, index: int) -> None:
        self.agents[index % len(self.agents)].act(self.now)

    @rule(index=indices)
    def a_host_takes_jobs(self, index: int) -> None:
        for model, process in self.agents[index % len(self.agents)].processes.items():
            while process.state == "ready" and process.running < SLOTS and self.queue[model]:
                self.queue[model] -= 1
                process.running += 1
                process.used = self.now
            if not self.queue[model]:
                self.since.pop(model, None)

    @rule(index=indices)
    def a_host_finishes_jobs(self, index: int) -> None:
        for process in self.agents[index % len(self.agents)].processes.values():
            self.done += process.running
            if process.running:
                process.running, process.used = 0, self.now

    @rule(index=indices)
    @precondition(lambda self: len(self.agents) > 1)
    def a_host_dies(self, index: int) -> None:
        agent = self.agents[index % len(self.agents)]
        for model, jobs in agent.die().items() if agent.is_up else ():
            self._back(model, jobs)

    @rule(index=indices)
    def a_host_comes_back(self, index: int) -> None:
        agent = self.agents[index % len(self.agents)]
        if not agent.is_up:
            agent.start()
            agent.report(self.now)

    @rule(index=indices)
    def a_replica_crashes(self, index: int) -> None:
        agent = self.agents[index % len(self.agents)]
        for model, process in list(agent.processes.items())[:1]:
            self._back(model, process.running)
            agent.ledger.release(process.id)
            del agent.processes[model]

    def _back(self, model: str, jobs: int) -> None:
        if jobs:
            self.queue[model] += jobs
            self.since.setdefault(model, self.now)

    # --- what must hold --------------------------------------------------------------------------------------

    @invariant()
    def no_host_holds_more_than_it_has(self) -> None:
        for agent in getattr(self, "agents", []):
            held = sum(one.place.memory_bytes for one in agent.processes.values())
            assert held <= agent.total
            assert len({one.place.model.id for one in agent.processes.values()}) == len(agent.processes)

    @invariant()
    def nothing_is_assigned_beyond_what_a_host_has(self) -> None:
        """By the latest assignment, of whichever leader, and everything that really runs and is not part of it."""
        store = getattr(self, "store", None)
        for agent in getattr(self, "agents", []):
            want = store.values.get(f"want.{agent.name}") if store else None
            if want is not None:
                promised = {one.model.id: one.memory_bytes for one in want.models}
                running = {model: one.place.memory_bytes for model, one in agent.processes.items()}
                assert sum((running | promised).values()) <= agent.total

    def teardown(self) -> None:
        """The faults are over. Whatever was going on, every job gets done."""
        if not hasattr(self, "agents"):
            return
        for agent in self.agents:
            self.store.put(f"drain.{agent.name}", None)
            if not agent.is_up:
                agent.start()
        for model in self.sizes:  # what is wanted may fill the fleet: that is another question
            self.store.put(f"intent.{model}", None)
        self.placers[1 - self.leader].die()
        for _ in range(250):
            placer = self.placers[self.leader]
            placer.copy.snapshot()
            placer.decide(self.backlog(), self.now)
            while placer.unwritten:
                placer.write_one()
            for index, agent in enumerate(self.agents):
                agent.copy.snapshot()
                agent.act(self.now)
                self.a_host_takes_jobs(index)
                agent.report(self.now)
                self.a_host_finishes_jobs(index)
            self.now += 1.0
            if not any(self.queue.values()):
                break
        assert not any(self.queue.values()), f"jobs were left: {self.queue}"


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=25, stateful_step_count=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


class LongProtocol(Protocol):
    """The same, for longer."""


TestProtocolForLong = pytest.mark.slow(LongProtocol.TestCase)
TestProtocolForLong.settings = settings(
    max_examples=600, stateful_step_count=150, deadline=None, suppress_health_check=list(HealthCheck)
)
