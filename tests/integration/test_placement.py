"""Placement on a real nats-server: queues, refusals, events, questions, and two leaders at once."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest

from gateway.cli import drain, events, explain, operate
from gateway.cli.errors import CliError
from gateway.cli.tables import model_rows
from gateway.placement.leader import Leader
from gateway.placement.planner import plan
from gateway.placement.queues import Queues
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus, Msg
from shared.errors import WrongRevision
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import Estimated, encode
from shared.records import (
    AssignmentRecord,
    Device,
    IntentRecord,
    LeaseRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)
from shared.settings import EvictionSettings, PlacementSettings
from tests.integration.conftest import Connect
from tests.support.eventually import eventually
from tests.support.running_gateway import running_gateway

GB = 1 << 30


class Host:
    """A worker that does at once what it is told: the agent's side of the protocol, without processes."""

    def __init__(self, bus: Bus, fleet: Fleet, name: str, size: int, mirrors: tuple[str, ...] = ()) -> None:
        self.name, self.size, self.mirrors = name, size, list(mirrors)
        self.num_loads = 0
        self.epoch = 0
        self.running: dict[str, int] = {}
        self._bus, self._fleet = bus, fleet
        self._bucket = Bucket(bus, names.FLEET)
        self._held: dict[str, int] = {}
        self._loaded: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Host":
        await self._report()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            want = self._fleet.wants.get(self.name)
            for place in want.models if want else []:
                model = place.model.id
                if place.unload_if_idle:
                    if model in self._held and not self.running.get(model):
                        await self._unload(model)
                elif model not in self._held:
                    self._held[model], self._loaded[model] = place.memory_bytes, time.time()
                    self.num_loads += 1
                    assert sum(self._held.values()) <= self.size, "more was promised than there is"
            for model in set(self._held) - {place.model.id for place in want.models if want} if want else set():
                await self._unload(model)
            await self._report()
            await asyncio.sleep(0.05)

    async def _unload(self, model: str) -> None:
        del self._held[model]
        await self._bucket.delete(names.replica_key(self._id(model)))

    def _id(self, model: str) -> str:
        return f"{self.name}-{names.slug(model)}".replace("=", "_")

    async def _report(self) -> None:
        free = self.size - sum(self._held.values())
        device = Device(id="cpu", kind="cpu", name="cpu", total_bytes=self.size, free_bytes=free)
        want = self._fleet.wants.get(self.name)
        record = WorkerRecord(
            name=self.name,
            incarnation="i",
            host="h",
            devices=[device],
            epoch=self.epoch,
            generation=want.generation if want else 0,
            mirrors=self.mirrors,
        )
        await self._bucket.put(names.worker_key(self.name), encode(record), ttl_s=5)
        for model, taken in self._held.items():
            replica = ReplicaRecord(
                id=self._id(model),
                model=model,
                worker=self.name,
                state="ready",
                devices=["cpu"],
                reserved_bytes=taken,
                running=self.running.get(model, 0),
                since_s=self._loaded[model],
                load_s=0.01,
                last_used_s=self._loaded[model],
            )
            await self._bucket.put(names.replica_key(replica.id), encode(replica), ttl_s=5)


@pytest.fixture
async def fleet(bus: Bus) -> AsyncIterator[Fleet]:
    async with Fleet(bus) as fleet:
        yield fleet


@pytest.fixture
async def leader(bus: Bus, fleet: Fleet) -> AsyncIterator[Leader]:
    eviction = EvictionSettings(min_residency_s=0.3)
    placement = PlacementSettings(starvation_bound_s=1.0)
    async with Leader(bus, fleet, "g1", placement=placement, eviction=eviction, settle_s=0.5) as leader:
        yield leader


@pytest.fixture
async def sizes(bus: Bus) -> dict[str, int]:
    """A worker that tells sizes, as written here; in GB."""
    known: dict[str, int] = {}

    async def tell(message: Msg) -> None:
        model = msgspec.json.decode(message.data)["model"]["id"]
        size = known.get(model, 1) * GB
        await message.respond(encode(Estimated(minimum_bytes=size, wanted_bytes=size)))

    await bus.subscribe(names.ESTIMATE, tell, queue=names.ESTIMATE_QUEUE)
    return known


async def put_model(bus: Bus, id: str, **fields: Any) -> None:
    await Bucket(bus, names.PLAN).put(names.model_key(id), encode(ModelRecord(id=id, **({"source": "s"} | fields))))


async def enqueue(bus: Bus, model: str, id: str, payload: bytes = b"{}") -> None:
    await bus.enqueue(names.job_subject(model, "interactive"), payload, msg_id=id, ttl_s=60)


def models_of(fleet: Fleet, worker: str) -> list[str]:
    return sorted(one.model for one in fleet.replicas.values() if one.worker == worker)


async def kinds(bus: Bus, model: str = "") -> list[str]:
    return [one.kind for one in await events.read(bus, time.time() - 60, model)]


async def test_jobs_in_the_queue_load_their_model_whoever_published_them(
    bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    """No gateway asks for it: the queue itself is looked at."""
    await put_model(bus, "m/1")
    async with Host(bus, fleet, "w1", 4 * GB):
        await eventually(partial(bus.consumer_info, names.JOBS, names.job_consumer("m/1", "interactive")))
        await enqueue(bus, "m/1", "1")
        await eventually(lambda: models_of(fleet, "w1") == ["m/1"])


async def test_what_a_job_waited_at_its_gateway_counts_for_its_age(bus: Bus) -> None:
    """Of a client's flood few jobs are in the queue, and all of these are young: no replica was ever added for it."""
    await bus.ensure_consumer("m/1", "interactive")
    queues = Queues(bus)
    for number, payload in enumerate((b'{"held_s":30.5}', b"no job", b"{}")):
        await enqueue(bus, "m/1", str(number), payload)
        before = time.time() - (30.5 if number == 0 else 0.0)
        found = (await queues.look({"m/1"}))["m/1"]
        assert (found.queued, before - 10 < found.since_s < before + 10) == (1, True)
        await bus.api("STREAM.PURGE.JOBS", {})


async def test_demand_for_more_than_fits_is_served_in_turns(
    bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    """Eviction from the first question to the last record, and the books of the worker hold at every moment."""
    sizes |= {"a": 3, "b": 3, "c": 3}
    for model in sizes:
        await put_model(bus, model)
    async with Host(bus, fleet, "w1", 4 * GB) as host:
        for model in ("a", "b", "c"):
            leader._history.ask(model, time.time())
            leader._changed.set()
            await eventually(lambda model=model: models_of(fleet, "w1") == [model])
        assert host.num_loads == 3
    told = {*await kinds(bus, "a"), *await kinds(bus, "b")}
    assert told >= {"assigned", "yielding", "waiting", "ready", "gone"}


async def test_the_busy_give_way_only_to_those_that_starve(
    bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    sizes |= {"a": 3, "b": 3}
    await put_model(bus, "a")
    await put_model(bus, "b")
    async with Host(bus, fleet, "w1", 4 * GB) as host:
        leader._history.ask("a", time.time())
        await eventually(lambda: models_of(fleet, "w1") == ["a"])
        host.running["a"] = 1
        await eventually(lambda: any(one.running for one in fleet.replicas.values()))
        asked = time.time()
        while models_of(fleet, "w1") != ["b"]:
            leader._history.ask("b", time.time())
            await asyncio.sleep(0.05)
        assert time.time() - asked >= 0.9
    (unloaded,) = [one for one in await events.read(bus, asked - 60, "a") if one.kind == "unloaded"]
    assert unloaded.reason.startswith("it finishes and goes: jobs have waited")
    assert unloaded.inputs["needs_bytes"] == 3 * GB


async def test_what_a_load_took_is_remembered_beyond_the_leader(
    bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    sizes["a"] = 3
    await put_model(bus, "a")
    async with Host(bus, fleet, "w1", 4 * GB):
        leader._history.ask("a", time.time())
        await eventually(lambda: "a" in fleet.measured)
        (load,) = fleet.measured["a"].loads
        assert (load.worker, load.bytes) == ("w1", 3 * GB)


async def test_a_model_that_could_never_fit_is_a_4xx_with_numbers(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.placement.leader.SETTLE_S", 0.5)
    sizes["large"] = 40
    await put_model(bus, "large")
    async with Host(bus, fleet, "w1", 4 * GB), running_gateway(broker, accept_wait_s=20) as gateway:
        answer: httpx.Response = await gateway.ask(model="large")
        assert answer.status_code == 413
        message = answer.json()["error"]["message"]
        assert "No worker of this fleet can run the model" in message
        assert "needs 42.95 GB on cpu of w1, which has 4.29 GB" in message


async def test_a_model_of_a_mirror_goes_to_the_worker_that_knows_it_which_is_asked_for_its_size(
    bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    """Any worker was asked and any was chosen; those without the mirror failed."""
    sizes["a"] = 1  # in the eyes of whoever has not got it
    asked = asyncio.Event()

    async def tell(message: Msg) -> None:
        asked.set()
        await message.respond(encode(Estimated(minimum_bytes=2 * GB, wanted_bytes=2 * GB)))

    await bus.subscribe(names.worker_estimate("small"), tell)
    await put_model(bus, "a", source="lab:org/a")
    async with Host(bus, fleet, "large", 9 * GB), Host(bus, fleet, "small", 4 * GB, mirrors=("lab",)):
        await eventually(lambda: len(fleet.workers) == 2)
        leader._history.ask("a", time.time())
        leader._changed.set()
        await eventually(lambda: models_of(fleet, "small") == ["a"])
        assert asked.is_set()
        (place,) = fleet.wants["small"].models
        assert place.memory_bytes == 2 * GB


async def test_a_mirror_that_no_worker_knows_is_a_4xx_that_says_so(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.placement.leader.SETTLE_S", 0.5)
    await put_model(bus, "strange", source="lab:org/a")
    async with Host(bus, fleet, "w1", 4 * GB), running_gateway(broker, accept_wait_s=20) as gateway:
        answer: httpx.Response = await gateway.ask(model="strange")
        assert answer.status_code == 413
        assert "no worker knows the mirror 'lab' of its source" in answer.json()["error"]["message"]
        entry = (await gateway.http.get("/v1/models/strange")).json()
        assert entry["state"] == "cannot_fit" and "the mirror 'lab'" in entry["reason"]


async def test_a_deposed_leader_that_does_not_know_it_changes_nothing(
    bus: Bus, fleet: Fleet, connect: Connect, sizes: dict[str, int]
) -> None:
    """Its process was stopped for a while; it wakes up in the middle of writing."""
    await put_model(bus, "a")
    await put_model(bus, "b")
    old_bus = await connect("gateway", "old")
    async with Host(bus, fleet, "w1", 4 * GB), Fleet(old_bus) as old_fleet:
        async with Leader(old_bus, old_fleet, "old", settle_s=0.5) as old:
            old._history.ask("a", time.time())
            old._changed.set()
            await eventually(lambda: models_of(fleet, "w1") == ["a"])
            stale = dict(old_fleet.wants)
            revision = old_fleet.revision(names.want_key("w1"))
            epoch = old._lease.epoch
        async with Leader(bus, fleet, "new", settle_s=0.5) as new:
            await eventually(lambda: fleet.wants["w1"].epoch > epoch)
            late = AssignmentRecord(worker="w1", epoch=epoch, generation=stale["w1"].generation + 1, models=[])
            with pytest.raises(WrongRevision):
                await Bucket(old_bus, names.PLAN).update(names.want_key("w1"), encode(late), revision)
            assert new.leads and models_of(fleet, "w1") == ["a"]


async def test_a_worker_that_obeys_a_higher_number_is_led_again(
    bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    """Its assignment was written by hand, and it refused every other until it was restarted."""
    await put_model(bus, "a")
    async with Host(bus, fleet, "w1", 4 * GB) as host:
        await eventually(lambda: leader.leads and "w1" in fleet.wants)
        host.epoch = fleet.wants["w1"].epoch + 10**9
        await eventually(lambda: fleet.wants["w1"].epoch > host.epoch)
        leader._history.ask("a", time.time())
        await eventually(lambda: models_of(fleet, "w1") == ["a"])
        assert leader.leads and leader._lease.epoch == fleet.wants["w1"].epoch
        lease, _ = await Bucket(bus, names.FLEET).get(names.LEASE_PLACER)
        assert json.loads(lease)["epoch"] == leader._lease.epoch


async def test_two_leaders_cannot_promise_the_same_memory(
    bus: Bus, fleet: Fleet, connect: Connect, sizes: dict[str, int]
) -> None:
    """Both plan on the same view; one write of the two is refused."""
    sizes |= {"a": 3, "b": 3}
    await put_model(bus, "a")
    await put_model(bus, "b")
    async with Host(bus, fleet, "w1", 4 * GB), Leader(bus, fleet, "one", settle_s=0.5) as one:
        await eventually(lambda: one.leads and "w1" in fleet.workers and len(fleet.models) == 2)
        for model in ("a", "b"):
            await one._sizes.find(one._view(), model)
        two_bus = await connect("gateway", "two")
        async with Fleet(two_bus) as two_fleet:
            two = Leader(two_bus, two_fleet, "two")
            two._lease._revision, two._lease._epoch = one._lease._revision, one._lease._epoch
            two._lease._valid_until = time.monotonic() + 60  # it believes that it leads
            for leader, model in ((one, "a"), (two, "b")):
                leader._sizes = one._sizes
                leader._history.ask(model, time.time())
            plans = [plan(leader._view(), one._lease.epoch) for leader in (one, two)]
            assert all(decided.changes for decided in plans)
            written = await asyncio.gather(one._write(plans[0]), two._write(plans[1]))
            assert sorted(written) == [False, True]
        (want,) = [await Bucket(bus, names.PLAN).get(names.want_key("w1"))]
        assert want is not None
        assert len(msgspec.json.decode(want[0], type=AssignmentRecord).models) == 1


async def test_what_changed_while_a_plan_is_written_is_not_overwritten(
    bus: Bus, fleet: Fleet, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another leader's assignment of a second host arrived between the writes of the first: a newer one was lost."""
    for model in ("a", "b"):
        sizes[model] = 3
        await put_model(bus, model)
    async with (
        Host(bus, fleet, "w1", 4 * GB),
        Host(bus, fleet, "w2", 4 * GB),
        Leader(bus, fleet, "one", settle_s=0.5) as one,
    ):
        await eventually(lambda: one.leads and {"w1", "w2"} <= fleet.wants.keys() and len(fleet.models) == 2)

        async def nothing() -> None:
            """What is planned, this test plans."""

        monkeypatch.setattr(one, "_decide", nothing)
        for model in ("a", "b"):
            await one._sizes.find(one._view(), model)
            one._history.ask(model, time.time())
        decided = plan(one._view(), one._lease.epoch)
        assert [record.worker for record in decided.changes] == ["w1", "w2"]
        plan_bucket, update = one._plan_bucket, one._plan_bucket.update
        newer = AssignmentRecord(worker="w2", epoch=one._lease.epoch + 1, generation=99)
        key = names.want_key("w2")

        async def slow(written: str, value: bytes, revision: int, *more: Any) -> int:
            if written != key:
                await Bucket(bus, names.PLAN).put(key, encode(newer))
                await eventually(lambda: fleet.wants["w2"].generation == 99)
            return await update(written, value, revision, *more)

        monkeypatch.setattr(plan_bucket, "update", slow)
        assert not await one._write(decided)
        held = await Bucket(bus, names.PLAN).get(key)
        assert held is not None
        assert msgspec.json.decode(held[0], type=AssignmentRecord) == newer


async def test_questions_are_answered_and_nothing_is_done(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    sizes |= {"a": 3, "b": 3, "huge": 50}
    for model in sizes:
        await put_model(bus, model)
    operator = broker.bus_settings("operator")
    async with Host(bus, fleet, "w1", 4 * GB), Host(bus, fleet, "w2", 2 * GB):
        leader._history.ask("a", time.time())
        leader._changed.set()
        await eventually(lambda: models_of(fleet, "w1") == ["a"])
        leader._sizes._known[("b", "s||torch|auto||0|0|1|")] = leader._sizes._known[("a", "s||torch|auto||0|0|1|")]
        await asyncio.sleep(0.4)  # until a may be displaced

        facts = await explain.explain(operator, "a")
        assert (facts["model"]["state"], facts["model"]["leader"]) == ("ready", "g1")
        text = explain.as_text(facts)
        assert "a is ready: on w1" in text and "w1 cpu: ready" in text and "assigned a on w1: jobs wait for it" in text
        assert "w2 cpu: needs 3.22 GB on cpu of w2, which has 2.15 GB" in text

        foreseen = await explain.foresee(operator, "load", "b")
        assert foreseen["steps"] == [
            "w1: unload if idle a (b needs the memory)",
            "after 1 s: w1: load b (what-if wants it loaded)",
        ]
        lost = await explain.foresee(operator, "lose", "w1")
        assert lost["steps"][0] == "w1: unload a (w1 is lost)"
        with pytest.raises(CliError, match="there is no worker w9"):
            await explain.foresee(operator, "drain", "w9")
        with pytest.raises(CliError, match="neither a model of the catalogue"):
            await explain.explain(operator, "nonsense")
        assert models_of(fleet, "w1") == ["a"] and fleet.wants["w1"].models[0].model.id == "a"


async def test_the_status_says_why_a_wanted_model_is_not_there(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    sizes |= {"a": 3, "b": 3}
    for model in ("a", "b", "c"):
        await put_model(bus, model)
        if model != "c":
            intent = IntentRecord(model=model, want="loaded", by="ann", at_s=float(ord(model)))
            await Bucket(bus, names.PLAN).put(names.intent_key(model), encode(intent))
    async with Host(bus, fleet, "w1", 4 * GB):
        await eventually(lambda: models_of(fleet, "w1") == ["a"] and fleet.replicas_of("a"))
        before = dict(leader._history._asked)
        shown = await operate.snapshot(broker.bus_settings("operator"))
        details = {row.model: row.detail for row in model_rows(shown)}
        assert "a is wanted loaded" in details["b"]
        assert details["c"] == ""
        assert leader._history._asked == before  # asking loads nothing


async def test_a_drained_worker_is_emptied_and_used_again(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    await put_model(bus, "a")
    await Bucket(bus, names.PLAN).put(names.intent_key("a"), encode(IntentRecord(model="a", want="loaded", by="ann")))
    operator = broker.bus_settings("operator")
    async with Host(bus, fleet, "w1", 4 * GB):
        await eventually(lambda: models_of(fleet, "w1") == ["a"])
        async with Host(bus, fleet, "w2", 4 * GB):
            await eventually(lambda: "w2" in fleet.workers)
            await drain.drain(operator, "w1", undo=False, wait_s=10)
            # `drain` looked at a mirror of its own; this one may hear of it a moment later.
            await eventually(lambda: models_of(fleet, "w1") == [] and models_of(fleet, "w2") == ["a"])
            await drain.drain(operator, "w1", undo=True, wait_s=0)
            await eventually(lambda: not fleet.drains)
    assert "unloaded" in await kinds(bus, "a")


async def test_events_are_kept_and_followed(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, leader: Leader, sizes: dict[str, int]
) -> None:
    await put_model(bus, "org/a.b")
    seen: list[str] = []
    operator = broker.bus_settings("operator")
    await eventually(lambda: leader.leads)
    following = asyncio.create_task(
        events.follow(operator, 60.0, "org/a.b", True, lambda event: seen.append(events.as_line(event)))
    )
    async with Host(bus, fleet, "w1", 4 * GB):
        leader._history.ask("org/a.b", time.time())
        await eventually(lambda: any("ready org/a.b on w1" in line for line in seen))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert any("assigned org/a.b on w1: jobs wait for it" in line for line in seen)
    assert "joined" in await kinds(bus) and "leads" in await kinds(bus)


def test_a_lease_names_its_holder() -> None:
    """What an operator reads with the stock command line says who leads."""
    assert msgspec.json.decode(encode(LeaseRecord(holder="g1", epoch=3)))["holder"] == "g1"
