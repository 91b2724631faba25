"""An eviction is a request to the agent: unload if idle. And the leader's promise of memory is a limit to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared import messages, names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import Done
from shared.records import Assigned, AssignmentRecord, ModelRecord, ReplicaRecord
from shared.settings import WorkerSettings
from tests.support.owner import Owner
from tests.support.synthetic import write_synthetic
from worker.agent.agent import Agent

MODEL = "test/synthetic"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """A model as far as the synthetic back end reads it."""
    path = write_synthetic(tmp_path_factory.mktemp("model"))
    return ModelRecord(id=MODEL, source=str(path), backend="synthetic", options={"tokens_per_s": 20})


@pytest.fixture
async def fleet(bus: Bus) -> AsyncIterator[Fleet]:
    async with Fleet(bus) as fleet:
        yield fleet


class Leader:
    """Writes assignments of one model."""

    def __init__(self, bus: Bus, model: ModelRecord) -> None:
        self._bucket, self._model, self._generation = Bucket(bus, names.PLAN), model, 0

    async def assign(self, **fields: Any) -> None:
        self._generation += 1
        models = [Assigned(model=self._model, devices=["cpu"], **fields)]
        record = AssignmentRecord(worker="w1", epoch=1, generation=self._generation, models=models)
        await self._bucket.put(names.want_key("w1"), messages.encode(record))


@asynccontextmanager
async def running(broker: EmbeddedBroker, tmp_path: Path) -> AsyncIterator[None]:
    settings = WorkerSettings(
        name="w1", state_dir=tmp_path, bus=broker.bus_settings("worker"), memory_bytes=1 << 30, device="cpu", cores=2
    )
    agent = Agent(settings, "w1")
    ready = asyncio.Event()
    task = asyncio.create_task(agent.run(ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield
    finally:
        agent.stop()
        await asyncio.gather(task, return_exceptions=True)


async def until_ready(fleet: Fleet) -> ReplicaRecord:
    await fleet.wait_for(lambda fleet: any(one.state == "ready" for one in fleet.replicas.values()), 30)
    return next(one for one in fleet.replicas.values() if one.state == "ready")


async def test_an_idle_model_yields_stays_away_and_comes_back(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model: ModelRecord, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        leader = Leader(bus, model)
        await leader.assign()
        first = await until_ready(fleet)
        await leader.assign(unload_if_idle=True, room_for="other")
        await fleet.wait_for(lambda fleet: not fleet.replicas, 15)
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].devices[0].reserved_bytes == 0, 5)
        await leader.assign(unload_if_idle=True, room_for="another")  # told again: it is away already
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].generation == 3, 5)
        assert not fleet.replicas
        await leader.assign()
        assert (await until_ready(fleet)).id != first.id


async def test_a_busy_model_does_not_yield_until_its_work_is_done(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model: ModelRecord, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        leader = Leader(bus, model)
        await leader.assign()
        replica = await until_ready(fleet)
        owner = await Owner(bus, MODEL).start()
        stream = await owner.submit(owner.job(max_tokens=40, ignore_eos=True))
        await fleet.wait_for(lambda fleet: fleet.replicas[replica.id].running == 1, 10)
        await leader.assign(unload_if_idle=True, room_for="other")
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].generation == 2, 5)
        assert fleet.replicas[replica.id].state == "ready"  # it goes on, and takes more
        another = await owner.submit(owner.job(max_tokens=2, ignore_eos=True))
        assert isinstance(await owner.finished(another), Done)
        assert isinstance(await owner.finished(stream), Done)
        await fleet.wait_for(lambda fleet: not fleet.replicas, 15)


async def test_a_request_to_yield_can_be_taken_back(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model: ModelRecord, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        leader = Leader(bus, model)
        await leader.assign()
        replica = await until_ready(fleet)
        owner = await Owner(bus, MODEL).start()
        stream = await owner.submit(owner.job(max_tokens=40, ignore_eos=True))
        await fleet.wait_for(lambda fleet: fleet.replicas[replica.id].running == 1, 10)
        await leader.assign(unload_if_idle=True, room_for="other")
        await leader.assign()
        assert isinstance(await owner.finished(stream), Done)
        await fleet.wait_for(lambda fleet: fleet.replicas[replica.id].running == 0, 5)
        assert fleet.replicas[replica.id].state == "ready"
        assert isinstance(await owner.finished(await owner.submit(owner.job(max_tokens=2))), Done)
        assert list(fleet.replicas) == [replica.id]


async def test_a_promise_that_is_too_small_is_refused_with_what_it_takes(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model: ModelRecord, tmp_path: Path
) -> None:
    """Also where the device itself has room: the leader has promised the rest to somebody else."""
    async with running(broker, tmp_path):
        leader = Leader(bus, model)
        await leader.assign(memory_bytes=100 << 20)
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].failures, 15)
        (failure,) = fleet.workers["w1"].failures
        assert (failure.kind, failure.device, failure.free_bytes) == ("underestimated", "cpu", 100 << 20)
        assert failure.needed_bytes > failure.free_bytes
        await leader.assign(memory_bytes=failure.needed_bytes)
        replica = await until_ready(fleet)
        assert replica.reserved_bytes == failure.needed_bytes
        assert not [one for one in fleet.workers["w1"].failures if one.at_s > failure.at_s]
