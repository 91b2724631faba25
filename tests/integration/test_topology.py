"""The stream and the buckets come to be as they should."""

import asyncio
import time

import pytest

from shared import names, topology
from shared.errors import ApiError, BusUnavailable
from shared.kv import Bucket
from shared.topology import Topology
from tests.support.eventually import eventually


async def config_of(bus, stream: str) -> dict:
    return (await bus.api(f"STREAM.INFO.{stream}", {}))["config"]


async def test_many_at_once_and_again(connect):
    buses = [await connect("gateway", f"g{number}") for number in range(4)]
    await asyncio.gather(*(topology.ensure(bus) for bus in buses * 2))
    created = {name: await config_of(buses[0], name) for name in ("JOBS", "KV_fleet", "KV_plan")}
    await topology.ensure(buses[0])
    assert {name: await config_of(buses[0], name) for name in created} == created

    jobs, fleet, plan = created.values()
    assert jobs["subjects"] == ["plexus.job.*.*"]
    assert (jobs["retention"], jobs["discard"], jobs["discard_new_per_subject"]) == ("workqueue", "new", True)
    assert (jobs["allow_msg_ttl"], jobs["max_msgs_per_subject"]) == (True, 4096)
    assert (fleet["max_msgs_per_subject"], plan["max_msgs_per_subject"]) == (1, 10)
    assert fleet["republish"] == {"src": "$KV.fleet.>", "dest": "plexus.fleet.ev.>"}
    assert plan["republish"] == {"src": "$KV.plan.>", "dest": "plexus.plan.ev.>"}
    assert fleet["subject_delete_marker_ttl"] == 60 * 10**9
    assert fleet["allow_direct"] and plan["allow_direct"]


async def test_changed_settings_change_the_stream_and_keep_what_is_in_it(bus):
    await bus.enqueue(names.job_subject("m", "batch"), b"x", msg_id="a.1", ttl_s=60)
    await topology.ensure(bus, Topology(jobs_per_subject=7))
    info = await bus.api("STREAM.INFO.JOBS", {})
    assert info["config"]["max_msgs_per_subject"] == 7
    assert info["state"]["messages"] == 1
    await topology.ensure(bus)
    assert (await config_of(bus, "JOBS"))["max_msgs_per_subject"] == 4096


async def test_change_that_the_server_refuses_is_an_error(bus):
    with pytest.raises(ApiError):
        await topology.ensure(bus, Topology(jobs_storage="memory"))


async def test_revisions_go_on_when_the_store_was_lost(bus):
    bucket = Bucket(bus, names.FLEET)
    before = await bucket.put("worker.a", b"x")
    assert abs(before - time.time() * 1000) < 60_000
    await bus.api("STREAM.DELETE.KV_fleet", {})
    await topology.ensure(bus)
    assert await bucket.put("worker.a", b"x") > before


async def test_a_number_of_a_lost_queue_is_nobody_elses(bus):
    subject = names.job_subject("m", "interactive")
    lost = await bus.enqueue(subject, b"a", msg_id="a", ttl_s=None)
    await bus.api("STREAM.DELETE.JOBS", {})
    await topology.ensure(bus)
    await bus.ensure_consumer("m", "interactive")
    seq = await bus.enqueue(subject, b"b", msg_id="b", ttl_s=None)
    assert seq > lost
    assert not await bus.delete_message(names.JOBS, lost)
    info = await bus.consumer_info(names.JOBS, names.job_consumer("m", "interactive"))
    assert lost <= info["delivered"]["stream_seq"] < seq


async def test_waits_for_a_server_that_restarts(broker, connect):
    bus = await connect()
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    ensuring = asyncio.create_task(topology.ensure(bus))
    await broker.start()
    await asyncio.wait_for(ensuring, 10)
    assert await config_of(bus, "KV_plan")


async def test_gives_up_when_nobody_answers(connect, monkeypatch):
    monkeypatch.setattr(topology, "READY_S", 0.3)
    bus = await connect("worker")  # who may not create streams: the server does not answer
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(topology.ensure(bus), 8)
