"""What holds for every fleet and demand: never too much is promised, nobody waits for ever, nothing moves in vain."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fleet_simulator import Simulator
from tests.support.placement import GB, Paper

BOUND_S, RESIDENCY_S, JOB_S, LOAD_S = 15.0, 3.0, 3.0, 6.0
LAG_S = 6.0  # orders and records take a tick each way; asking to yield, leaving and loading are three rounds
QUICK = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def fleets(draw: st.DrawFn, *, plain: bool) -> tuple[Paper, dict[str, float]]:
    """Unlike workers, models that do not all fit, and how long each takes to load."""
    paper = Paper(draw(st.sampled_from(["lru", "priority"])), starvation_bound_s=BOUND_S, scale_up_after_s=4.0)
    for index in range(draw(st.integers(1, 3))):
        paper.worker(f"w{index}", *draw(st.lists(st.integers(4, 16), min_size=1, max_size=2)))
    load_s = {}
    for index in range(draw(st.integers(2, 6))):
        name = f"m{index}"
        fields: dict[str, Any] = {"priority": draw(st.integers(0, 2)), "max_replicas": draw(st.integers(1, 2))}
        if not plain:
            fields |= {"residency": draw(st.integers(0, 2)), "pinned": draw(st.booleans())}
            fields |= {"keep_alive_s": draw(st.sampled_from([0.0, 8.0])), "min_replicas": draw(st.integers(0, 1))}
        paper.model(name, size=draw(st.integers(1, 12)), **fields)
        load_s[name] = draw(st.floats(1.0, LOAD_S))
    return paper, load_s


@st.composite
def demands(draw: st.DrawFn, length: int) -> list[list[int]]:
    """For each second, the models that are asked for."""
    return draw(st.lists(st.lists(st.integers(0, 5), max_size=2), min_size=length, max_size=length))


def fits_somewhere(paper: Paper, model: str) -> bool:
    need = paper.bytes_of(model)
    return any(device.total_bytes >= need for worker in paper.workers.values() for device in worker.devices)


def check_bounded(made: tuple[Paper, dict[str, float]], demand: list[list[int]]) -> None:
    paper, load_s = made
    fleet = Simulator(paper, load_s)
    for asked in demand + [[] for _ in range(10)]:
        for index in asked:
            model = f"m{index % len(load_s)}"
            if fits_somewhere(paper, model):
                fleet.arrive(model, JOB_S)
        fleet.tick()
    rivals = len(load_s)
    turn = max(RESIDENCY_S, LOAD_S) + LOAD_S + JOB_S + LAG_S
    # Its own queue counts too: jobs before it in the queue of its model, served while the model is loaded.
    own = JOB_S * max((sum(row.count(index) for row in demand) for index in range(6)), default=0)
    assert not fleet.faults
    assert max(fleet.waits(), default=0.0) <= BOUND_S + rivals * turn + own


def check_safe(made: tuple[Paper, dict[str, float]], demand: list[list[int]], data: st.DataObject) -> None:
    """Classes, pins, wishes, workers that drain: whatever happens, no byte is promised twice and no load doubled."""
    paper, load_s = made
    fleet = Simulator(paper, load_s)
    for second, asked in enumerate(demand):
        for index in asked:
            fleet.arrive(f"m{index % len(load_s)}", JOB_S)
        if second % 9 == 4:
            happens = data.draw(st.sampled_from(["load", "unload", "forget", "drain", "resume", "stranger"]))
            model = data.draw(st.sampled_from(sorted(load_s)))
            worker = data.draw(st.sampled_from(sorted(paper.workers)))
            if happens == "load":
                paper.load(model, replicas=data.draw(st.integers(1, 2)))
            elif happens == "unload":
                paper.unload(model)
            elif happens == "forget":
                paper.intents.pop(model, None)
            elif happens == "drain":
                paper.drain(worker)
            elif happens == "resume":
                paper.drains.pop(worker, None)
            else:
                paper.foreign[worker, paper.workers[worker].devices[0].id] = data.draw(st.integers(0, 4)) * GB
        fleet.tick()
        for model in load_s:
            intent = paper.intents.get(model)
            most = max(paper.models[model].max_replicas, intent.replicas if intent else 0, len(paper.drains) + 1)
            assert fleet.num_loading(model) <= most
    assert not fleet.faults


def check_calm(made: tuple[Paper, dict[str, float]]) -> None:
    """Demand that stays the same and can be met all at once: after a while nothing changes any more."""
    paper, load_s = made
    room = sum(device.total_bytes for worker in paper.workers.values() for device in worker.devices)
    steady: list[str] = []
    smallest = min(device.total_bytes for worker in paper.workers.values() for device in worker.devices)
    for model in sorted(load_s):
        paper.models[model].max_replicas = 1
        if paper.bytes_of(model) <= smallest and sum(map(paper.bytes_of, [*steady, model])) * 2 <= room:
            steady.append(model)
    fleet = Simulator(paper, load_s, slots=8)
    for second in range(80):
        if second % 2 == 0:
            for model in steady:
                fleet.arrive(model, JOB_S)
        fleet.tick()
    assert not fleet.faults
    late = [at for at in fleet.changes if at > fleet.paper.now - 40]
    assert not late, f"still moving at {late}"


@QUICK
@given(fleets(plain=True), demands(90))
def test_every_admissible_request_is_served_within_the_bound(
    made: tuple[Paper, dict[str, float]], demand: list[list[int]]
) -> None:
    check_bounded(made, demand)


@QUICK
@given(fleets(plain=False), demands(60), st.data())
def test_never_over_committed_and_never_loaded_twice(
    made: tuple[Paper, dict[str, float]], demand: list[list[int]], data: st.DataObject
) -> None:
    check_safe(made, demand, data)


@QUICK
@given(fleets(plain=True))
def test_constant_demand_does_not_oscillate(made: tuple[Paper, dict[str, float]]) -> None:
    check_calm(made)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(fleets(plain=True), demands(120))
def test_bounded_many(made: tuple[Paper, dict[str, float]], demand: list[list[int]]) -> None:
    check_bounded(made, demand)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(fleets(plain=False), demands(90), st.data())
def test_safe_many(made: tuple[Paper, dict[str, float]], demand: list[list[int]], data: st.DataObject) -> None:
    check_safe(made, demand, data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(fleets(plain=True))
def test_calm_many(made: tuple[Paper, dict[str, float]]) -> None:
    check_calm(made)
