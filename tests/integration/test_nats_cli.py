"""The stock `nats` command line against a running fleet, as an operator whom the production configuration lets in.

Its requests are sent as it sends them (`support/nats_cli`), and its judgement of the answers is made here.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator

import httpx
import msgspec
import pytest

from shared import names
from shared.bus import Bus
from shared.fleet import Fleet
from shared.messages import Pong
from shared.records import EventRecord, ReplicaRecord, WorkerRecord
from tests.support import micro_schemas
from tests.support.eventually import eventually
from tests.support.nats_cli import NatsCli
from tests.support.separate_fleet import SeparateFleet, models_toml, until
from tests.support.synthetic import synthetic_model, write_synthetic

MB = 1 << 20
MODELS = ["acme/first-1.5", "second", "third"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateFleet]:
    """A gateway, and a worker with room for two of three models; the first is loaded."""
    folder = tmp_path_factory.mktemp("fleet")
    path = write_synthetic(folder / "model")
    records = [synthetic_model(id, path) for id in MODELS]
    (folder / "models.toml").write_text(models_toml(records))
    with SeparateFleet(folder) as fleet:
        gateway = fleet.gateway(models=str(folder / "models.toml"), eviction={"min_residency_s": 0.1})
        fleet.worker("w1", 600 * MB, cores=2, standby=False)
        gateway.started()
        fleet.workers["w1"].started()
        assert ask(gateway.url, MODELS[0]).status_code == 200
        yield fleet


def ask(url: str, model: str) -> httpx.Response:
    """A short chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture
async def bus(running: SeparateFleet) -> AsyncIterator[Bus]:
    bus = await running.operator()
    yield bus
    await bus.close()


@pytest.fixture
def nats(bus: Bus) -> NatsCli:
    return NatsCli(bus)


@pytest.fixture
async def fleet(bus: Bus) -> AsyncIterator[Fleet]:
    async with Fleet(bus) as fleet:
        yield fleet


def is_ready(fleet: Fleet, model: str) -> bool:
    return any(one.state == "ready" for one in fleet.replicas_of(model))


async def what_if_loaded(nats: NatsCli, model: str) -> list[str]:
    """The steps to it."""
    answer = await nats.req("plexus.placer.whatif", json.dumps({"change": "load", "name": model}))
    found: list[str] = answer.get("steps", [])
    return found


async def test_streams_and_consumers_are_listed_and_described(nats: NatsCli) -> None:
    streams = {one["config"]["name"]: one for one in await nats.stream_ls()}
    assert sorted(streams) == sorted(await nats.stream_names())
    assert {"JOBS", "EVENTS", "KV_fleet", "KV_plan"} <= streams.keys()
    info = await nats.stream_info("JOBS")
    assert info["config"]["subjects"] == ["plexus.job.*.*"] and info["config"]["retention"] == "workqueue"

    consumers = await nats.consumer_ls("JOBS")
    assert names.job_consumer(MODELS[0], "interactive") == "interactive-acme=2Ffirst-1=2E5" in consumers
    assert {one["name"] for one in await nats.consumer_report("JOBS")} == set(consumers)
    consumer = await nats.consumer_info("JOBS", "interactive-acme=2Ffirst-1=2E5")
    assert consumer["config"]["filter_subject"] == "plexus.job.acme=2Ffirst-1=2E5.interactive"
    assert consumer["num_pending"] == 0

    async def none_is_open() -> bool:  # the last job's confirmation takes a moment
        return (await nats.consumer_info("JOBS", "interactive-acme=2Ffirst-1=2E5"))["num_ack_pending"] == 0

    await eventually(none_is_open)


async def test_nobody_takes_a_job_by_accident(nats: NatsCli) -> None:
    answer = await nats.consumer_next("JOBS", "interactive-acme=2Ffirst-1=2E5")
    assert (answer.headers or {})["Status"] == "400"


async def test_events_are_read_from_their_stream(nats: NatsCli) -> None:
    info = await nats.stream_info("EVENTS", ">")
    assert info["state"]["subjects"]["plexus.event.acme=2Ffirst-1=2E5.ready"] == 1
    first = await nats.stream_get("EVENTS", info["state"]["first_seq"])
    assert first["subject"].startswith("plexus.event.")


async def test_buckets_are_listed_read_and_watched(nats: NatsCli, fleet: Fleet) -> None:
    assert {"fleet", "plan"} <= set(await nats.kv_buckets())
    assert (await nats.kv_info("plan"))["config"]["max_msgs_per_subject"] == 10
    keys = await nats.kv_ls("fleet")
    assert {"worker.w1", "lease.placer"} <= set(keys)
    worker = msgspec.json.decode(await nats.kv_get("fleet", "worker.w1"), type=WorkerRecord)
    assert (worker.name, worker.devices[0].total_bytes) == ("w1", 600 * MB)
    (replica,) = [one for one in keys if one.startswith("replica.")][:1]
    async with nats.kv_watch("fleet", replica) as seen:
        for _ in range(2):  # as it is, and the next heartbeat
            key, operation, value = await asyncio.wait_for(seen.get(), 5)
            assert (key, operation) == (replica, "PUT")
            assert msgspec.json.decode(value, type=ReplicaRecord).worker == "w1"
    wants = await nats.kv_history("plan", "want.w1")
    revisions = [revision for revision, _, _ in wants]
    assert revisions == sorted(revisions) and len(wants) >= 2
    assert b'"models":[]' not in wants[-1][2]
    with pytest.raises(KeyError):
        await nats.kv_get("plan", "intent.nothing")


async def test_gateways_and_replicas_are_services(nats: NatsCli, running: SeparateFleet) -> None:
    gateway = running.gateways[0]

    async def ask_for(verb: str) -> None:
        everyone, gateways, one, nobody = await asyncio.gather(
            nats.micro(verb),
            nats.micro(verb, "plexus-gateway"),
            nats.micro(verb, "plexus-gateway", gateway.id),
            nats.micro(verb, "plexus-gateway", "nobody"),
        )
        for answer in everyone:
            micro_schemas.check(verb, answer)
        assert {"plexus-gateway", "plexus-replica"} == {answer["name"] for answer in everyone}
        assert [answer["id"] for answer in gateways] == [answer["id"] for answer in one] == [gateway.id]
        assert nobody == []

    await asyncio.gather(*(ask_for(verb) for verb in ("PING", "INFO", "STATS")))
    (info,) = await nats.micro("INFO", "plexus-gateway")
    assert info["metadata"]["url"] == gateway.url
    assert info["endpoints"][0]["subject"] == names.gateway_rpc(gateway.id)
    replicas = await nats.micro("INFO", "plexus-replica")
    assert MODELS[0] in [one["metadata"]["model"] for one in replicas]
    (stats,) = await nats.micro("STATS", "plexus-gateway")
    assert stats["endpoints"][0]["data"] == {"in_flight": 0}


async def test_requests_of_an_operator(nats: NatsCli) -> None:
    answer = await nats.req("plexus.placer.explain", json.dumps({"model": MODELS[0]}))
    assert answer["state"] == "ready" and answer["reason"] == "on w1"
    foreseen = await nats.req("plexus.placer.whatif", json.dumps({"change": "load", "name": "second"}))
    assert any("load second" in step for step in foreseen["steps"])
    replica = (await nats.micro("INFO", "plexus-replica"))[0]
    pong = await nats.req(replica["endpoints"][0]["subject"], json.dumps({"op": "ping"}))
    assert "error" not in pong and msgspec.convert(pong, Pong).phase == "idle"


async def test_a_typed_intent_loads_and_another_unloads(nats: NatsCli, fleet: Fleet) -> None:
    async with nats.sub("plexus.event.second.*") as events:
        await nats.kv_put("plan", "intent.second", '{"want": "loaded"}')
        await until(fleet, lambda fleet: is_ready(fleet, "second"), 30)
        await nats.kv_put("plan", "intent.second", '{"want": "unloaded"}')
        await until(fleet, lambda fleet: not fleet.replicas_of("second"), 30)
        kinds = [msgspec.json.decode(events.get_nowait().data, type=EventRecord).kind for _ in range(events.qsize())]
    assert [kind for kind in kinds if kind in ("assigned", "unloaded")] == ["assigned", "unloaded"]
    await nats.kv_del("plan", "intent.second")
    await until(fleet, lambda fleet: "second" not in fleet.intents)
    assert [operation for _, operation, _ in await nats.kv_history("plan", "intent.second")] == ["PUT", "PUT", "DEL"]


async def test_a_pinned_model_is_not_displaced(nats: NatsCli, fleet: Fleet, running: SeparateFleet) -> None:
    url = running.gateways[0].url
    await nats.kv_put("plan", "intent.second", '{"want": "loaded", "pinned": true}')
    await until(fleet, lambda fleet: is_ready(fleet, "second"), 30)
    assert (await asyncio.to_thread(ask, url, "third")).status_code == 200  # in the room of the first
    assert is_ready(fleet, "second") and not is_ready(fleet, MODELS[0])
    steps = await eventually(lambda: what_if_loaded(nats, MODELS[0]), 10)  # the leader looks at the queue each second
    assert "unload if idle third" in steps[0]
    assert not any("second" in step for step in steps)
    await nats.kv_purge("plan", "intent.second")
    await until(fleet, lambda fleet: "second" not in fleet.intents)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("loaded", "JSON"),
        ('{"want": "lodaed"}', "lodaed"),
        ("{}", "want"),
        ('{"want": "loaded", "replicas": 0}', "1"),
        ('{"want": "loaded", "model": "third"}', "third"),
    ],
)
async def test_a_bad_intent_is_said_and_ignored(nats: NatsCli, fleet: Fleet, value: str, reason: str) -> None:
    async with nats.sub("plexus.event.second.refused") as events:
        await nats.kv_put("plan", "intent.second", value)
        event = msgspec.json.decode((await asyncio.wait_for(events.get(), 5)).data, type=EventRecord)
    assert event.reason.startswith("intent.second: ") and reason in event.reason
    assert "second" not in fleet.intents
    await nats.kv_del("plan", "intent.second")


async def test_an_intent_for_a_model_that_is_not_there_is_said(nats: NatsCli) -> None:
    async with nats.sub("plexus.event.nothing.refused") as events:
        await nats.kv_put("plan", "intent.nothing", '{"want": "loaded"}')
        event = msgspec.json.decode((await asyncio.wait_for(events.get(), 5)).data, type=EventRecord)
    assert "the catalogue does not have the model" in event.reason
    await nats.kv_del("plan", "intent.nothing")


async def test_a_worker_is_emptied_by_hand(nats: NatsCli, fleet: Fleet) -> None:
    await nats.kv_put("plan", "drain.w1", "{}")
    await until(fleet, lambda fleet: not fleet.replicas and not fleet.wants["w1"].models)
    assert "an operator drains w1" in {event.reason async for event in events_of(nats)}
    await nats.kv_del("plan", "drain.w1")
    await until(fleet, lambda fleet: "w1" not in fleet.drains)


async def events_of(nats: NatsCli) -> AsyncIterator[EventRecord]:
    state = (await nats.stream_info("EVENTS"))["state"]
    for seq in range(state["first_seq"], state["last_seq"] + 1):
        data = base64.b64decode((await nats.stream_get("EVENTS", seq))["data"])
        yield msgspec.json.decode(data, type=EventRecord)


async def test_an_entry_of_the_catalogue_is_put_by_hand(nats: NatsCli, running: SeparateFleet, fleet: Fleet) -> None:
    source = msgspec.json.decode(await nats.kv_get("plan", "model.second"))["source"]
    entry = {"id": "typed", "source": source, "backend": "synthetic"}
    await nats.kv_put("plan", "model.typed", json.dumps(entry))
    url = running.gateways[0].url
    await eventually(lambda: "typed" in [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]])
    assert (await asyncio.to_thread(ask, url, "typed")).status_code == 200
    # And taken out, with what was wanted of it.
    await nats.kv_put("plan", "intent.typed", '{"want": "loaded"}')
    await until(fleet, lambda fleet: "typed" in fleet.intents and is_ready(fleet, "typed"), 30)
    await nats.kv_del("plan", "intent.typed")
    await nats.kv_del("plan", "model.typed")
    await until(fleet, lambda fleet: "typed" not in fleet.models and not fleet.replicas_of("typed"), 30)
    await eventually(lambda: "typed" not in [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]])
    assert (await asyncio.to_thread(ask, url, "typed")).status_code == 404
    told = {(event.kind, event.reason) async for event in events_of(nats) if event.model == "typed"}
    assert ("unloaded", "the catalogue no longer has it") in told
    assert "refused" not in {kind for kind, _ in told}
