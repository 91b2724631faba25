"""Jobs in and out of the JetStream queue."""

import asyncio

import msgspec
import pytest

from shared import names, topology
from shared.bus import Bus, Msg
from shared.errors import ApiError, BusUnavailable, PayloadTooLarge, QueueFull
from shared.topology import Topology
from tests.support.eventually import eventually
from tests.support.freeze import frozen

MODEL = "org/Model-1.0"
SUBJECT = names.job_subject(MODEL, "interactive")
CONSUMER = names.job_consumer(MODEL, "interactive")


async def num_jobs(bus: Bus) -> int:
    return int((await bus.api(f"STREAM.INFO.{names.JOBS}", {}))["state"]["messages"])


async def pull(bus: Bus, priority: int) -> "asyncio.Queue[Msg]":
    """One standing pull; what it brings comes into the queue."""
    messages: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = bus.new_inbox()
    await bus.subscribe(inbox, messages.put)
    body = {"batch": 1, "expires": 20_000_000_000, "group": names.PRIORITY_GROUP, "priority": priority}
    await bus.publish(names.pull_subject(MODEL, "interactive"), msgspec.json.encode(body), reply=inbox)
    await bus.flush()
    return messages


async def test_enqueue_gives_the_sequence_and_ignores_a_double(bus):
    first = await bus.enqueue(SUBJECT, b"one", msg_id="a.1", ttl_s=60)
    assert await bus.enqueue(SUBJECT, b"one", msg_id="a.1", ttl_s=60) == first
    assert await bus.enqueue(SUBJECT, b"two", msg_id="a.2", ttl_s=None) == first + 1
    assert await num_jobs(bus) == 2


async def test_delete_message_says_whether_it_was_there(bus):
    seq = await bus.enqueue(SUBJECT, b"one", msg_id="a.1", ttl_s=60)
    assert await bus.delete_message(names.JOBS, seq) is True
    assert await bus.delete_message(names.JOBS, seq) is False
    assert await bus.delete_message(names.JOBS, 999_999) is False
    assert await num_jobs(bus) == 0


async def test_full_queue_of_one_model_does_not_block_another(connect):
    bus = await connect()
    await topology.ensure(bus, Topology(jobs_per_subject=3))
    for number in range(3):
        await bus.enqueue(SUBJECT, b"x", msg_id=f"a.{number}", ttl_s=60)
    with pytest.raises(QueueFull) as caught:
        await bus.enqueue(SUBJECT, b"x", msg_id="a.4", ttl_s=60)
    assert (caught.value.subject, caught.value.err_code) == (SUBJECT, 10077)
    await bus.enqueue(names.job_subject(MODEL, "batch"), b"x", msg_id="a.5", ttl_s=60)


async def test_full_stream_is_a_full_queue(connect):
    bus = await connect()
    await topology.ensure(bus, Topology(jobs_max_bytes=1 << 20))
    await bus.enqueue(SUBJECT, b"x" * (900 << 10), msg_id="a.1", ttl_s=60)
    with pytest.raises(QueueFull):
        await bus.enqueue(SUBJECT, b"x" * (900 << 10), msg_id="a.2", ttl_s=60)


async def test_oversized_job_is_refused(bus):
    with pytest.raises(PayloadTooLarge):
        await bus.enqueue(SUBJECT, b"x" * bus.max_payload, msg_id="a.1", ttl_s=60)
    assert await num_jobs(bus) == 0


async def test_job_dies_with_its_deadline(bus):
    await bus.enqueue(SUBJECT, b"x", msg_id="a.1", ttl_s=0.2)
    assert await num_jobs(bus) == 1
    await eventually(lambda: _is_empty(bus))


async def _is_empty(bus: Bus) -> bool:
    return await num_jobs(bus) == 0


async def test_enqueue_over_a_restart_is_neither_lost_nor_doubled(broker, bus):
    ids = [f"job{number}.1" for number in range(60)]

    async def client(mine: list[str]) -> list[int]:
        return [await bus.enqueue(SUBJECT, b"x" * 1000, msg_id=msg_id, ttl_s=600) for msg_id in mine]

    clients = [asyncio.create_task(client(ids[start::6])) for start in range(6)]
    await eventually(lambda: _holds(bus, 6))
    broker.kill()
    await broker.start()
    sequences = {seq for mine in await asyncio.gather(*clients) for seq in mine}
    assert len(sequences) == len(ids) == await num_jobs(bus)


async def _holds(bus: Bus, count: int) -> bool:
    return await num_jobs(bus) >= count


async def test_job_whose_answer_was_lost_is_stored_once(bus, monkeypatch):
    monkeypatch.setattr("shared.bus.ATTEMPT_S", 0.1)
    take_answer, lost = bus._take_answer, []

    def lose_the_first(message: Msg) -> None:
        if lost:
            take_answer(message)
        else:
            lost.append(message)

    for subscription in bus._subscriptions:
        subscription._listener = lose_the_first
    seq = await bus.enqueue(SUBJECT, b"x", msg_id="a.1", ttl_s=60)
    assert len(lost) == 1 and msgspec.json.decode(lost[0].data)["seq"] == seq
    assert await num_jobs(bus) == 1


async def test_enqueue_gives_up_after_its_time(broker, bus, monkeypatch):
    monkeypatch.setattr("shared.bus.ENQUEUE_S", 0.5)
    monkeypatch.setattr("shared.bus.ATTEMPT_S", 0.1)
    with frozen(broker.pid), pytest.raises(BusUnavailable):
        await asyncio.wait_for(bus.enqueue(SUBJECT, b"x", msg_id="a.1", ttl_s=60), 3)
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(bus.enqueue(SUBJECT, b"x", msg_id="a.1", ttl_s=60), 3)


async def test_enqueue_without_a_stream_gives_up_after_its_time(connect, monkeypatch):
    monkeypatch.setattr("shared.bus.ENQUEUE_S", 0.3)
    bus = await connect()
    with pytest.raises(BusUnavailable):
        await bus.enqueue(SUBJECT, b"x", msg_id="a.1", ttl_s=60)


async def test_consumer_is_made_once_by_many_at_once(connect, bus):
    others = [await connect("gateway", f"g{number}") for number in range(4)]
    await asyncio.gather(*(other.ensure_consumer(MODEL, "interactive") for other in [bus, *others] * 3))
    info = await bus.consumer_info(names.JOBS, CONSUMER)
    config = info["config"]
    assert config["filter_subject"] == SUBJECT and config["ack_policy"] == "explicit"
    assert config["priority_policy"] == "prioritized" and config["priority_groups"] == [names.PRIORITY_GROUP]
    assert (config["max_ack_pending"], config["max_deliver"]) == (-1, 6)
    assert (config["ack_wait"], config["inactive_threshold"]) == (5 * 10**9, 3600 * 10**9)
    assert await bus.consumer_info(names.JOBS, "unknown") is None


async def test_consumer_on_an_older_server_has_no_priorities(bus, monkeypatch):
    monkeypatch.setitem(bus._client._server_info, "version", "2.11.9")
    assert not bus.has_priority_pulls
    await bus.ensure_consumer(MODEL, "interactive")
    assert "priority_policy" not in (await bus.consumer_info(names.JOBS, CONSUMER))["config"]


async def test_consumer_is_not_asked_for_again_within_a_minute(broker, bus):
    await bus.ensure_consumer(MODEL, "interactive")
    sent = bus._client.stats["out_msgs"]
    await bus.ensure_consumer(MODEL, "interactive")
    assert bus._client.stats["out_msgs"] == sent
    await bus.ensure_consumer(MODEL, "batch")
    assert bus._client.stats["out_msgs"] == sent + 1
    broker.kill()
    await broker.start()
    await eventually(lambda: bus.is_connected and not bus._ensured)


async def num_waiting(bus, expected):
    """Whether the server knows of so many pulls: it takes them up in its own time."""
    info = await bus.consumer_info(names.JOBS, names.job_consumer(MODEL, "interactive"))
    return info["num_waiting"] == expected


async def test_job_goes_to_the_least_loaded_replica(bus, connect):
    await bus.ensure_consumer(MODEL, "interactive")
    worker = await connect("worker")
    busy, free = await pull(worker, priority=7), await pull(worker, priority=1)
    await eventually(lambda: num_waiting(bus, 2))
    await bus.enqueue(SUBJECT, b"first", msg_id="a.1", ttl_s=60)
    await bus.enqueue(SUBJECT, b"second", msg_id="a.2", ttl_s=60)
    assert (await asyncio.wait_for(free.get(), 5)).data == b"first"
    assert (await asyncio.wait_for(busy.get(), 5)).data == b"second"


async def test_job_waits_for_a_model_that_nobody_has(bus, connect):
    await bus.enqueue(SUBJECT, b"early", msg_id="a.1", ttl_s=60)
    await bus.ensure_consumer(MODEL, "interactive")
    messages = await pull(await connect("worker"), priority=0)
    message = await asyncio.wait_for(messages.get(), 5)
    await message.respond(b"+ACK")
    await eventually(lambda: _is_empty(bus))


async def test_api_error_carries_the_code(bus):
    with pytest.raises(ApiError) as caught:
        await bus.api("STREAM.INFO.NONE", {})
    assert (caught.value.code, caught.value.err_code) == (404, 10059)
