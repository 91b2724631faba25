"""What each user of the embedded server may do, and what a worker may not."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from shared import names
from shared.broker import render
from shared.bus import Bus, Msg
from shared.errors import BusError
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import WorkerRecord
from shared.settings import BrokerSettings
from tests.support.eventually import eventually

MODEL = "m"
SUBJECT = names.job_subject(MODEL, "interactive")


@pytest.fixture
async def worker(connect) -> Bus:
    return await connect("worker", "gpu1")


async def collect(bus: Bus, subject: str) -> "asyncio.Queue[Msg]":
    messages: asyncio.Queue[Msg] = asyncio.Queue()
    await bus.subscribe(subject, messages.put)
    await bus.flush()
    return messages


async def test_all_that_a_front_and_an_agent_do(bus, worker, connect):
    operator = await connect("operator")
    bucket = Bucket(worker, names.FLEET)
    async with Fleet(worker) as fleet:
        # the agent: its records, and a look at both buckets
        record = encode(WorkerRecord(name="gpu1", incarnation="i", host="h"))
        await bucket.put(names.worker_key("gpu1"), record, ttl_s=5)
        await bucket.put(names.replica_key("r1"), b"{}", ttl_s=5)
        await bucket.delete(names.replica_key("r1"))
        await fleet.wait_for(lambda f: "gpu1" in f.workers, 5)
        assert await Bucket(worker, names.PLAN).get("want.gpu1") is None

    # the front: pull, accept to gateway and operator, keep, ack
    await bus.ensure_consumer(MODEL, "interactive")
    jobs = await collect(worker, inbox := worker.new_inbox())
    pull = {"batch": 2, "expires": 10**10, "group": names.PRIORITY_GROUP, "priority": 0}
    await worker.publish(names.pull_subject(MODEL, "interactive"), msgspec.json.encode(pull), reply=inbox)
    await bus.enqueue(SUBJECT, b"job", msg_id="a.1", ttl_s=60)
    job = await asyncio.wait_for(jobs.get(), 5)
    await job.respond(b"+WPI")
    for listener, reply in ((bus, names.delta_subject("g1")), (operator, operator.new_inbox()), (operator, "_INBOX.x")):
        deltas = await collect(listener, reply)
        await worker.publish(reply, b"delta", reply=names.no_responders("r1", reply))
        assert (await asyncio.wait_for(deltas.get(), 5)).data == b"delta"
    await job.respond(b"+ACK")
    await eventually(lambda: _is_empty(bus))
    assert await worker.consumer_info(names.JOBS, names.job_consumer(MODEL, "interactive"))

    # rpc both ways
    async def answer(message: Msg) -> None:
        await message.respond(b"pong")

    for subject in (names.replica_rpc("r1"), names.worker_rpc("gpu1")):
        await worker.subscribe(subject, answer)
        await worker.flush()
        assert await bus.request(subject, b"ping", timeout_s=5) == b"pong"
        assert await operator.request(subject, b"ping", timeout_s=5) == b"pong"
    await bus.subscribe(names.gateway_rpc("g1"), answer)
    await bus.flush()
    assert await worker.request(names.gateway_rpc("g1"), b"claim", timeout_s=5) == b"pong"


async def _is_empty(bus: Bus) -> bool:
    return (await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"] == 0


async def test_delta_to_a_gone_owner_comes_back(worker):
    reply = names.delta_subject("gone")
    returned = await collect(worker, names.no_responders("r1", ">"))
    await worker.publish(reply, b"delta", reply=names.no_responders("r1", reply))
    message = await asyncio.wait_for(returned.get(), 5)
    assert message.headers[names.STATUS] == "503"
    assert names.gone_reply("r1", message.subject) == reply


FORBIDDEN: dict[str, Callable[[Bus], Awaitable[object]]] = {
    "publish a job": lambda bus: bus.request(SUBJECT, b"x", timeout_s=0.3),
    "delete the stream": lambda bus: bus.api("STREAM.DELETE.JOBS", {}, timeout_s=0.3),
    "purge the stream": lambda bus: bus.api("STREAM.PURGE.JOBS", {}, timeout_s=0.3),
    "delete a job": lambda bus: bus.delete_message("JOBS", 1),
    "make a consumer": lambda bus: bus.ensure_consumer("other", "interactive"),
    "read jobs of the stream": lambda bus: bus.api("STREAM.MSG.GET.JOBS", {"seq": 1}, timeout_s=0.3),
    "write a gateway": lambda bus: Bucket(bus, names.FLEET).put(names.gateway_key("g"), b"x"),
    "take the lease": lambda bus: Bucket(bus, names.FLEET).put(names.LEASE_PLACER, b"x"),
    "write a plan": lambda bus: Bucket(bus, names.PLAN).put(names.want_key("gpu1"), b"x"),
    "ask the placement leader": lambda bus: bus.request(names.PLACER_ENSURE, b"x", timeout_s=0.3),
}


@pytest.mark.parametrize("deed", FORBIDDEN)
async def test_what_a_worker_may_not(bus, worker, deed, monkeypatch):
    monkeypatch.setattr("shared.kv.TIMEOUT_S", 0.3)
    await bus.enqueue(SUBJECT, b"precious", msg_id="a.1", ttl_s=60)
    before = await _state(bus)
    with pytest.raises(BusError):
        await FORBIDDEN[deed](worker)
    assert "permissions violation" in str(worker._last_error).lower()
    assert await _state(bus) == before
    assert worker.is_connected


async def _state(bus: Bus) -> list[tuple[int, int]]:
    infos = [await bus.api(f"STREAM.INFO.{name}", {}) for name in ("JOBS", "KV_fleet", "KV_plan")]
    return [(info["state"]["last_seq"], info["state"]["messages"]) for info in infos]


@pytest.mark.parametrize("subject", ["plexus.job.>", "plexus.gw.g1.tok", "_INBOX_gateway.>", "$KV.>", "plexus.adv.>"])
async def test_what_a_worker_may_not_hear(worker, subject):
    await worker.subscribe(subject, _nothing)
    await worker.flush()
    await eventually(lambda: "permissions violation" in str(worker._last_error).lower())


async def _nothing(_: Msg) -> None:
    pass


_REPLICA = """
import asyncio, sys
from shared.bus import Bus
from shared.settings import BusSettings

async def main():
    settings = BusSettings.model_validate_json(sys.stdin.readline())
    async with await Bus.connect(settings, kind="replica", ident="r1"):
        print("connected", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_death_of_a_replica_is_announced_to_gateways(broker, bus):
    advisories = await collect(bus, names.DISCONNECTS)
    replica = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _REPLICA, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    replica.stdin.write(broker.bus_settings("worker").model_dump_json().encode() + b"\n")
    assert await asyncio.wait_for(replica.stdout.readline(), 20) == b"connected\n"
    replica.kill()
    advisory = msgspec.json.decode((await asyncio.wait_for(advisories.get(), 5)).data)
    assert names.parse_client_name(advisory["client"]["name"]) == ("replica", "r1")
    await replica.wait()
    replica.stdin.close()


async def test_named_worker_writes_only_its_own_record(broker, connect, bus, monkeypatch):
    """A user for each host, with the same server and account."""
    settings = BrokerSettings(
        port=broker.port,
        store_dir=str(broker._dir / "jetstream"),
        run_dir=str(broker._dir),
        gateway_password=broker.bus_settings("gateway").password,
        operator_password="o",
        system_password="s",
        worker_password="",
        workers={"gpu1": "one", "gpu2": "two"},
    )
    monkeypatch.setattr("shared.broker.render", lambda _: render(settings))
    monkeypatch.setattr("shared.kv.TIMEOUT_S", 0.3)
    await broker.stop()
    await broker.start()
    own = broker.bus_settings("worker").model_copy(update={"user": "gpu1", "password": "one"})
    async with await Bus.connect(own, kind="worker", ident="gpu1", wait=False) as worker:
        await Bucket(worker, names.FLEET).put(names.worker_key("gpu1"), b"{}")
        with pytest.raises(BusError):
            await Bucket(worker, names.FLEET).put(names.worker_key("gpu2"), b"{}")
        await worker.subscribe(names.worker_rpc("gpu2"), _nothing)
        await eventually(lambda: "plexus.worker.gpu2" in str(worker._last_error).lower())
