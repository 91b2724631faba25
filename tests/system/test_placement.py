"""Ten models on three hosts that hold six of them, two gateways, and whatever may happen to such a fleet."""

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli import events
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import ReplicaRecord
from tests.support.eventually import eventually
from tests.support.separate_fleet import Gateway, SeparateFleet, models_toml, until, write_whole
from tests.support.synthetic import synthetic_model, write_synthetic
from tests.support.traffic import Tally, drive, trace

MB = 1 << 20
MODELS = [f"model-{number}" for number in range(10)]
WORKERS = {"small": 300, "middle": 560, "large": 820}  # MB; a model takes 256
SETTINGS: dict[str, Any] = {
    "placement": {"starvation_bound_s": 3.0, "scale_up_after_s": 60.0},
    "eviction": {"min_residency_s": 0.5},
    "accept_wait_s": 0.5,
}
DEMAND_S = 7.0
SEED = 9  # of arrivals in which every model is asked for


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateFleet]:
    """All of it, started."""
    folder = tmp_path_factory.mktemp("fleet")
    path = write_synthetic(folder / "model")
    write_whole(folder / "models.toml", catalogue(path))
    with SeparateFleet(folder) as fleet:
        for _ in range(2):
            fleet.gateway(models=str(folder / "models.toml"), **SETTINGS)
        for name in WORKERS:
            start_worker(fleet, name)
        for process in (*fleet.gateways, *fleet.workers.values()):
            process.started()
        yield fleet


def catalogue(path: Path, *more: str, aliases: dict[str, str] | None = None) -> str:
    """The ten models, two that only the small host may run, and more."""
    records = [synthetic_model(id, path) for id in (*MODELS, *more)]
    records += [synthetic_model(id, path, workers=["small"]) for id in ("only-a", "only-b")]
    return models_toml(records, {"favourite": MODELS[0]} | (aliases or {}))


def start_worker(fleet: SeparateFleet, name: str) -> None:
    fleet.worker(name, WORKERS[name] * MB, cores=2, slots=8, enforce_memory=True, standby=False, drain_grace_s=10.0)


@pytest.fixture
async def bus(fleet: SeparateFleet) -> AsyncIterator[Bus]:
    """A connection of an operator's."""
    async with await fleet.operator() as bus:
        yield bus


@pytest.fixture
async def records(bus: Bus) -> AsyncIterator[Fleet]:
    """The fleet's records, as an operator sees them."""
    async with Fleet(bus) as records:
        yield records


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60.0) as client:
        yield client


async def ask(http: httpx.AsyncClient, gateway: Gateway, model: str, max_tokens: int = 4) -> httpx.Response:
    """A chat of exactly so many tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens}
    return await http.post(f"{gateway.url}/v1/chat/completions", json=body | {"ignore_eos": True})


def where(fleet: Fleet, model: str, state: str = "ready") -> list[str]:
    """Workers on which it is in that state."""
    return sorted(one.worker for one in fleet.replicas_of(model) if one.state == state)


class Watch:
    """Looks at every record that comes: what no host may ever do."""

    def __init__(self, fleet: Fleet) -> None:
        self.most: dict[str, int] = dict.fromkeys(WORKERS, 0)
        self.failures: set[str] = set()
        self._fleet = fleet
        fleet.on_change(self._look)

    def _look(self, key: str, record: object) -> None:
        for worker in self._fleet.workers.values():
            self.failures |= {f"{worker.name}: {one.model}: {one.reason}" for one in worker.failures}
        if isinstance(record, ReplicaRecord):
            here = [one for one in self._fleet.replicas.values() if one.worker == record.worker]
            self.most[record.worker] = max(self.most[record.worker], sum(one.reserved_bytes for one in here))

    def check(self) -> None:
        """Nothing was refused, failed or promised twice."""
        assert self.failures == set()
        for name, most in self.most.items():
            assert 0 < most <= WORKERS[name] * MB, name


def check_all_served(tally: Tally, least: int) -> None:
    assert tally.problems == []
    assert {one.status for one in tally.outcomes} == {200}
    assert len(tally.outcomes) >= least


async def test_ten_models_take_turns_and_no_request_fails(fleet: SeparateFleet, records: Fleet) -> None:
    watch = Watch(records)
    tally = await drive([one.url for one in fleet.gateways], trace(MODELS, DEMAND_S, per_s=5.0, phase_s=3.0, seed=SEED))
    check_all_served(tally, least=25)
    assert {one.arrival.model for one in tally.outcomes} == set(MODELS)
    watch.check()


def test_the_reason_of_an_eviction_is_told(fleet: SeparateFleet) -> None:
    told = fleet.operate("events", "--since", "1h", "--no-follow")
    found = re.findall(r"yielding (model-\d) on (\w+): (model-\d) needs the memory", told)
    assert found, told[-2000:]
    victim, worker, _ = found[-1]
    explained = fleet.operate("explain", victim)
    assert f"{victim} on {worker}: " in explained and "needs the memory" in explained
    assert re.search(rf"^{victim} is (ready|cold|loading|draining)", explained, re.MULTILINE)
    for name in WORKERS:
        assert re.search(rf"^  {name} cpu: .+ \(.* free\)$", explained, re.MULTILINE)
    as_lines = [
        json.loads(line) for line in fleet.operate("events", "--since", "1h", "--no-follow", "--json").splitlines()
    ]
    evictions = [one for one in as_lines if one["kind"] == "yielding" and "needs the memory" in one.get("reason", "")]
    assert all(one["inputs"]["needs_bytes"] and one["inputs"]["frees_bytes"] for one in evictions)


async def test_what_if_names_who_would_go(fleet: SeparateFleet, records: Fleet) -> None:
    cold = next(model for model in MODELS if not records.replicas_of(model))
    before = {one.id for one in records.replicas.values()}
    foreseen = await asyncio.to_thread(fleet.operate, "plan", "--what-if", f"load {cold}")
    assert re.search(rf"^1\. \w+: unload if idle model-\d \({cold} needs the memory\)$", foreseen, re.MULTILINE), (
        foreseen
    )
    assert re.search(rf"^\d\. .*\w+: load {cold} ", foreseen, re.MULTILINE), foreseen
    assert f"{cold}: cold → ready" in foreseen
    assert {one.id for one in records.replicas.values()} == before
    lost = await asyncio.to_thread(fleet.operate, "plan", "--what-if", "lose large")
    assert "large is lost" in lost


async def tells_of(bus: Bus, model: str, kind: str) -> bool:
    """Whether there was such an event within the last minute."""
    return any(one.kind == kind for one in await events.read(bus, time.time() - 60, model))


async def test_the_leader_is_killed_while_a_load_is_waited_for(
    fleet: SeparateFleet, bus: Bus, records: Fleet, http: httpx.AsyncClient
) -> None:
    holder = records.leases["placer"].holder
    leader = next(one for one in fleet.gateways if one.id == holder)
    other = next(one for one in fleet.gateways if one.id != holder)
    assert (await ask(http, other, "only-a")).status_code == 200
    busy = asyncio.create_task(ask(http, other, "only-a", max_tokens=150))  # four seconds, in the only place
    await until(records, lambda fleet: any(one.running for one in fleet.replicas_of("only-a")))
    waiting = asyncio.create_task(ask(http, other, "only-b"))
    orphan = asyncio.create_task(ask(http, leader, "only-b"))
    await eventually(lambda: tells_of(bus, "only-b", "waiting"), 20)
    await eventually(lambda: has_jobs(bus, 3), 10)
    leader.end(signal.SIGKILL)
    with pytest.raises(httpx.TransportError):
        await orphan
    assert (await busy).status_code == 200
    assert (await waiting).status_code == 200
    assert records.leases["placer"].holder == other.id
    await eventually(lambda: has_jobs(bus, 0), 20)  # also that of a gateway that is gone
    fleet.gateways.remove(leader)
    fleet.gateway(models=str(fleet.folder / "models.toml"), **SETTINGS).started()


async def has_jobs(bus: Bus, count: int) -> bool:
    """Whether so many jobs are in the queue."""
    return int((await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"]) == count


async def test_a_worker_that_is_killed_while_it_loads_begins_again(
    fleet: SeparateFleet, records: Fleet, http: httpx.AsyncClient
) -> None:
    model = "only-a" if where(records, "only-b") else "only-b"
    waiting = asyncio.create_task(ask(http, fleet.gateways[0], model))
    await until(records, lambda fleet: where(fleet, model, "loading"))
    fleet.workers["small"].end(signal.SIGKILL)
    start_worker(fleet, "small")
    fleet.workers["small"].started()
    assert (await waiting).status_code == 200
    assert where(records, model) == ["small"]


async def test_a_drained_worker_hands_its_models_over(
    fleet: SeparateFleet, records: Fleet, http: httpx.AsyncClient
) -> None:
    model = "model-1"
    assert (await ask(http, fleet.gateways[0], model)).status_code == 200
    (worker,) = where(records, model)
    long = [asyncio.create_task(ask(http, one, model, max_tokens=80)) for one in fleet.gateways]
    await until(records, lambda fleet: sum(one.running for one in fleet.replicas_of(model)) == 2)
    await asyncio.to_thread(fleet.operate, "drain", worker, "--wait", "--timeout", "40")
    assert [one.status_code for one in await asyncio.gather(*long)] == [200, 200]
    assert not any(one.worker == worker for one in records.replicas.values())
    assert (await ask(http, fleet.gateways[0], model)).status_code == 200
    assert worker not in where(records, model)
    await asyncio.to_thread(fleet.operate, "drain", worker, "--undo")
    await until(records, lambda fleet: worker not in fleet.drains)


async def test_the_models_of_a_killed_worker_go_to_others(
    fleet: SeparateFleet, records: Fleet, http: httpx.AsyncClient
) -> None:
    model = "model-2"
    assert (await ask(http, fleet.gateways[0], model)).status_code == 200
    (name,) = where(records, model)
    running = [asyncio.create_task(ask(http, one, model, max_tokens=80)) for one in fleet.gateways]
    await until(records, lambda fleet: sum(one.running for one in fleet.replicas_of(model)) == 2)
    tree = fleet.workers[name].tree()
    fleet.workers[name].end(signal.SIGKILL)
    assert [one.status_code for one in await asyncio.gather(*running)] == [200, 200]
    assert where(records, model) and name not in where(records, model)
    await eventually(lambda: not fleet.workers[name].left())
    assert len(tree) >= 3
    start_worker(fleet, name)
    fleet.workers[name].started()
    await until(records, lambda fleet: name in fleet.workers)


async def test_a_worker_that_restarts_takes_up_what_it_had(
    fleet: SeparateFleet, records: Fleet, http: httpx.AsyncClient
) -> None:
    model = "model-3"
    assert (await ask(http, fleet.gateways[0], model)).status_code == 200
    (name,) = where(records, model)
    before = {one.id for one in records.replicas.values() if one.worker == name}
    want = records.wants[name]
    fleet.workers[name].end(signal.SIGKILL)
    start_worker(fleet, name)
    fleet.workers[name].started()
    (replica,) = await until(
        records,
        lambda fleet: [one for one in fleet.replicas_of(model) if one.state == "ready" and one.id not in before],
    )
    assert replica.worker == name
    assert (await ask(http, fleet.gateways[1], model)).status_code == 200
    kept = {one.model.id for one in records.wants[name].models}
    assert kept >= {model} and {one.model.id for one in want.models} >= {model}


async def test_the_catalogue_is_read_again_while_requests_run(fleet: SeparateFleet, http: httpx.AsyncClient) -> None:
    file, path = fleet.folder / "models.toml", fleet.folder / "model"
    gateway = fleet.gateways[0]

    async def known() -> set[str]:
        return {one["id"] for one in (await http.get(f"{gateway.url}/v1/models")).json()["data"]}

    demand = asyncio.create_task(drive([one.url for one in fleet.gateways], trace(MODELS[:3], 4.0, per_s=5.0)))
    assert (await ask(http, gateway, "favourite")).json()["choices"]
    write_whole(file, catalogue(path, "late", aliases={"newest": "late"}))
    await eventually(known_has(known, "newest"), 10)
    assert (await ask(http, gateway, "newest")).status_code == 200
    write_whole(file, catalogue(path) + "\n[[model]]\nid = 3\n")
    await eventually(lambda: any("catalogue.refused" in one.said() for one in fleet.gateways), 10)
    assert "newest" in await known()
    write_whole(file, catalogue(path))
    await eventually(known_has(known, "newest", is_there=False), 10)
    assert (await ask(http, gateway, "newest")).status_code == 404
    check_all_served(await demand, least=10)


def known_has(known: Any, model: str, *, is_there: bool = True) -> Any:
    async def look() -> bool:
        return (model in await known()) is is_there

    return look
