"""Placement carried out on a real nats-server: from an intent to an assignment, by one leader at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest

from gateway.placement.leader import Leader
from gateway.placement.planner import plan
from shared import names
from shared.bus import Bus
from shared.errors import NoResponders
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import Ensure, Ensured, encode
from shared.records import Device, Failure, IntentRecord, ModelRecord, WorkerRecord
from tests.integration.conftest import Connect
from tests.support.eventually import eventually

GB = 1 << 30


class World:
    """The two buckets as operators and workers write them, and what comes of it."""

    def __init__(self, bus: Bus, fleet: Fleet) -> None:
        self.bus, self.fleet = bus, fleet
        self._fleet_bucket, self._plan_bucket = Bucket(bus, names.FLEET), Bucket(bus, names.PLAN)

    async def worker(self, name: str, *, failures: list[Failure] | None = None) -> None:
        device = Device(id="cpu", kind="cpu", name="cpu", total_bytes=GB, free_bytes=GB)
        record = WorkerRecord(name=name, incarnation="i", host="h", devices=[device], failures=failures or [])
        await self._fleet_bucket.put(names.worker_key(name), encode(record), ttl_s=600)

    async def gone(self, name: str) -> None:
        await self._fleet_bucket.delete(names.worker_key(name))

    async def model(self, name: str) -> None:
        await self._plan_bucket.put(names.model_key(name), encode(ModelRecord(id=name, source="s")))

    async def intent(self, model: str, want: str = "loaded") -> None:
        record = msgspec.convert({"model": model, "want": want, "by": "ann"}, IntentRecord)
        await self._plan_bucket.put(names.intent_key(model), encode(record))

    def assigned(self, worker: str) -> list[str] | None:
        want = self.fleet.wants.get(worker)
        return [one.model.id for one in want.models] if want else None

    async def ensure(self, model: str) -> Ensured:
        data = await self.bus.request(names.PLACER_ENSURE, encode(Ensure(model)), timeout_s=5)
        return msgspec.json.decode(data, type=Ensured)


@pytest.fixture
async def world(bus: Bus) -> AsyncIterator[World]:
    async with Fleet(bus) as fleet:
        yield World(bus, fleet)


@pytest.fixture
async def leader(world: World) -> AsyncIterator[Leader]:
    async with Leader(world.bus, world.fleet, "g1", settle_s=0.0) as leader:
        yield leader


async def test_an_intent_becomes_an_assignment(world: World, leader: Leader) -> None:
    await world.worker("w1")
    await world.model("m/1")
    await world.intent("m/1")
    await eventually(lambda: world.assigned("w1") == ["m/1"])
    want = world.fleet.wants["w1"]
    assert (want.epoch > 0, want.models[0].reason) == (True, "ann wants it loaded")
    await world.intent("m/1", "unloaded")
    await eventually(lambda: world.assigned("w1") == [])
    assert world.fleet.wants["w1"].generation == want.generation + 1


async def test_a_queue_exists_before_its_first_job(world: World, leader: Leader) -> None:
    await world.model("m")
    for job_class in names.JOB_CLASSES:
        consumer = names.job_consumer("m", job_class)
        await eventually(partial(world.bus.consumer_info, names.JOBS, consumer))


async def test_a_worker_that_is_gone_is_replaced(world: World, leader: Leader) -> None:
    await world.worker("w1")
    await world.model("m")
    await world.intent("m")
    await eventually(lambda: world.assigned("w1") == ["m"])
    await world.worker("w2")
    await world.gone("w1")
    await eventually(lambda: world.assigned("w2") == ["m"])
    await eventually(lambda: world.assigned("w1") == [])


async def test_a_failed_load_goes_to_another_worker_and_does_not_come_back(world: World, leader: Leader) -> None:
    await world.worker("w1")
    await world.model("m")
    await world.intent("m")
    await eventually(lambda: world.assigned("w1") == ["m"])
    failure = Failure(model="m", reason="does not fit", at_s=2e9, retry_at_s=2e9)
    await world.worker("w1", failures=[failure])
    await world.worker("w2")
    await eventually(lambda: world.assigned("w2") == ["m"])
    await world.worker("w1")  # the failure has left its record
    await world.worker("w2", failures=[failure])
    await asyncio.sleep(0.3)
    assert world.assigned("w2") == ["m"]
    assert world.assigned("w1") == []


async def test_nothing_is_written_when_nothing_changes(world: World, leader: Leader) -> None:
    await world.worker("w1")
    await world.model("m")
    await world.intent("m")
    await eventually(lambda: world.assigned("w1") == ["m"])
    revision = world.fleet.revision(names.want_key("w1"))
    for _ in range(5):
        await world.worker("w1")
        await asyncio.sleep(0.07)
    assert world.fleet.revision(names.want_key("w1")) == revision


async def test_a_standby_takes_over_under_a_higher_epoch(world: World, connect: Connect) -> None:
    await world.worker("w1")
    await world.model("m")
    await world.intent("m")
    async with AsyncExitStack() as stack:
        first_bus = await connect("gateway", "g1")
        first_fleet = await stack.enter_async_context(Fleet(first_bus))
        first = Leader(first_bus, first_fleet, "g1")
        await first.__aenter__()
        await eventually(lambda: world.assigned("w1") == ["m"])
        epoch = world.fleet.wants["w1"].epoch
        second = await stack.enter_async_context(Leader(world.bus, world.fleet, "g2"))
        assert not second.leads
        await first.__aexit__()
        await eventually(lambda: second.leads)
        await world.intent("m", "unloaded")
        await eventually(lambda: world.assigned("w1") == [])
        assert world.fleet.wants["w1"].epoch > epoch


async def test_a_deposed_leader_writes_nothing(world: World, leader: Leader) -> None:
    await eventually(lambda: leader.leads)
    leader._lease._lose()  # as when its renewal was refused
    await world.worker("w1")
    await world.model("m")
    await world.intent("m")
    await eventually(lambda: "w1" in world.fleet.workers and "m" in world.fleet.intents)
    decided = plan(leader._view(), epoch=1, claim=True)
    assert decided.changes
    await leader._write(decided)
    assert world.assigned("w1") is None


async def test_jobs_that_wait_bring_their_model(world: World, leader: Leader) -> None:
    await world.worker("w1")
    await world.model("m")
    await eventually(lambda: world.ensure("m"))
    await eventually(lambda: world.assigned("w1") == ["m"])
    await world.worker("w1")
    await asyncio.sleep(0.2)
    assert world.assigned("w1") == ["m"]  # it stays, although nobody asks any more


async def test_what_will_not_come_is_said(world: World, leader: Leader) -> None:
    await world.model("m")
    await world.intent("m", "unloaded")
    await eventually(lambda: "m" in world.fleet.intents)
    answer = await eventually(lambda: world.ensure("m"))
    assert (answer.state, answer.reason) == ("unloaded", "ann wants it unloaded")
    assert (await world.ensure("nope")).state == "unknown"


async def test_without_a_leader_nobody_answers(world: World) -> None:
    with pytest.raises(NoResponders):
        await world.ensure("m")
