"""The live copy of a bucket, over everything that can happen to the bucket and to the server."""

import asyncio
import contextlib

import pytest

from shared import names, topology
from shared.bus import Bus
from shared.errors import BusError
from shared.kv import Bucket
from shared.mirror import Mirror
from tests.support.eventually import eventually


def text(key: str, value: bytes) -> str | None:
    """Decode as text; refuse `bad`, leave out `skip`."""
    if value == b"bad":
        raise ValueError("on purpose")
    return None if value == b"skip" else value.decode()


@pytest.fixture
def fleet(bus: Bus) -> Bucket:
    return Bucket(bus, names.FLEET)


@pytest.fixture
async def mirror(connect, fleet):
    """A worker's copy, started when two keys are there."""
    await fleet.put("worker.a", b"one")
    await fleet.put("worker.b", b"two")
    async with Mirror(await connect("worker"), names.FLEET, text) as mirror:
        yield mirror


async def test_starts_with_what_is_there(mirror):
    assert mirror.items() == {"worker.a": "one", "worker.b": "two"}
    assert mirror.get("worker.a") == "one" and mirror.get("worker.c") is None


async def test_follows_changes_in_order(mirror, fleet):
    changes = []
    mirror.on_change(lambda key, value: changes.append((key, value)))
    for value in (b"1", b"1", b"2"):
        await fleet.put("worker.a", value)
    await fleet.delete("worker.b")
    await fleet.delete("worker.b")
    await fleet.put("worker.c", b"3")
    await mirror.wait_for(lambda m: m.get("worker.c"), 5)
    assert changes == [("worker.a", "1"), ("worker.a", "2"), ("worker.b", None), ("worker.c", "3")]
    assert mirror.num_snapshots == 1


async def test_expired_keys_leave(mirror, fleet):
    await fleet.put("worker.a", b"mortal", ttl_s=1)
    await mirror.wait_for(lambda m: m.get("worker.a") == "mortal", 5)
    await mirror.wait_for(lambda m: "worker.a" not in m.items(), 5)
    revision = await fleet.create("worker.a", b"again", ttl_s=60)
    await mirror.wait_for(lambda m: m.get("worker.a") == "again", 5)
    assert mirror.revision("worker.a") == revision


async def test_refused_writes_change_nothing(mirror, fleet):
    with contextlib.suppress(BusError):
        await fleet.update("worker.a", b"refused", 1)
    await fleet.put("worker.b", b"last")
    await mirror.wait_for(lambda m: m.get("worker.b") == "last", 5)
    assert mirror.get("worker.a") == "one"


async def test_values_that_cannot_be_decoded_are_left_out(mirror, fleet):
    await fleet.put("worker.a", b"bad")
    await fleet.put("worker.b", b"skip")
    await fleet.put("worker.c", b"fine")
    await mirror.wait_for(lambda m: m.items() == {"worker.c": "fine"}, 5)


async def test_failing_callback_stops_nothing(mirror, fleet):
    def fail(key: str, value: str | None) -> None:
        raise RuntimeError("on purpose")

    mirror.on_change(fail)
    await fleet.put("worker.a", b"after")
    await mirror.wait_for(lambda m: m.get("worker.a") == "after", 5)


async def test_wait_for_gives_up(mirror):
    with pytest.raises(TimeoutError):
        await mirror.wait_for(lambda m: False, 0.05)
    assert not mirror._waiters


async def test_gap_is_filled(mirror, fleet):
    for subscription in list(mirror._bus._subscriptions):
        if subscription is mirror._subscription:
            callback = subscription._callback
            subscription._callback = _nothing
            await fleet.put("worker.a", b"missed")
            await fleet.delete("worker.b")
            await eventually(lambda: _is_idle(mirror))
            subscription._callback = callback
    assert mirror.items() == {"worker.a": "one", "worker.b": "two"}
    await fleet.put("worker.c", b"noticed")
    await mirror.wait_for(lambda m: m.items() == {"worker.a": "missed", "worker.c": "noticed"}, 5)
    assert mirror.num_snapshots == 2


async def _nothing(_: object) -> None:
    pass


async def _is_idle(mirror: Mirror) -> bool:
    await mirror._bus.flush()
    return mirror._subscription._inner.pending_msgs == 0


async def test_snapshots_are_also_taken_without_cause(connect, fleet, monkeypatch):
    monkeypatch.setattr("shared.mirror.SNAPSHOT_S", 0.05)
    async with Mirror(await connect("worker"), names.FLEET, text) as mirror:
        await eventually(lambda: mirror.num_snapshots >= 3)


async def test_right_again_soon_after_a_server_crash(broker, mirror, fleet, bus):
    for number in range(3):
        broker.kill()
        await broker.start()
        value = f"after {number}".encode()
        await eventually(lambda value=value: fleet.put("worker.a", value))
        await mirror.wait_for(lambda m, value=value: m.get("worker.a") == value.decode(), 5)
    assert mirror.items() == {"worker.a": "after 2", "worker.b": "two"}


async def test_what_happened_during_its_outage_is_seen(broker, mirror, fleet):
    # Only the mirror's own connection is away, so that the changes happen without it.
    client = mirror._bus._client
    real, stay_away = client._select_next_server, asyncio.Event()

    async def wait_first() -> None:
        await stay_away.wait()
        await real()

    client._select_next_server = wait_first
    await client.force_reconnect()
    await eventually(lambda: not mirror._bus.is_connected)
    await fleet.put("worker.a", b"changed")
    await fleet.delete("worker.b")
    await fleet.put("worker.c", b"new")
    stay_away.set()
    await mirror.wait_for(lambda m: m.items() == {"worker.a": "changed", "worker.c": "new"}, 5)


async def test_bucket_that_was_made_anew(mirror, fleet, bus):
    await bus.api("STREAM.DELETE.KV_fleet", {})
    await topology.ensure(bus)
    await fleet.put("worker.c", b"new")
    await mirror.wait_for(lambda m: m.items() == {"worker.c": "new"}, 5)


async def test_bucket_that_was_made_anew_with_lower_revisions(mirror, fleet, bus):
    await fleet.put("worker.a", b"changed")
    await mirror.wait_for(lambda m: m.get("worker.a") == "changed", 5)
    await bus.api("STREAM.DELETE.KV_fleet", {})
    config = topology.configs(topology.Topology())[1]
    await bus.api("STREAM.CREATE.KV_fleet", config | {"first_seq": 5})
    await fleet.put("worker.b", b"new")
    await mirror.wait_for(lambda m: m.items() == {"worker.b": "new"}, 5)
    await fleet.put("worker.b", b"newer")
    await mirror.wait_for(lambda m: m.items() == {"worker.b": "newer"}, 5)


async def test_waits_for_a_bucket_that_comes_later(connect):
    bus, worker = await connect("gateway"), await connect("worker")
    mirror = Mirror(worker, names.FLEET, text)
    starting = asyncio.create_task(mirror.start())
    assert not (await asyncio.wait({starting}, timeout=0.2))[0]
    await topology.ensure(bus)
    await asyncio.wait_for(starting, 5)
    await mirror.close()
    await mirror.close()


async def test_more_keys_than_one_request_may_bring(fleet, connect, bus):
    count = 1500
    await asyncio.gather(*(fleet.put(f"replica.{number}", b"%d" % number) for number in range(count)))
    async with Mirror(await connect("worker"), names.FLEET, text) as mirror:
        assert mirror.items() == {f"replica.{number}": str(number) for number in range(count)}
        await fleet.delete("replica.7")
        await mirror.wait_for(lambda m: m.get("replica.7") is None, 5)
        mirror._wanted.set()
        await eventually(lambda: mirror.num_snapshots == 2)
        assert len(mirror.items()) == count - 1


async def test_many_writers_and_snapshots_at_once(fleet, connect, monkeypatch):
    monkeypatch.setattr("shared.mirror.SNAPSHOT_S", 0.01)
    async with Mirror(await connect("worker"), names.FLEET, text) as mirror:
        latest: dict[str, int] = {}

        def check(key: str, value: str | None) -> None:
            assert int(value or 0) > latest.get(key, -1), "went back"
            latest[key] = int(value or 0)

        mirror.on_change(check)

        async def write(key: str) -> None:
            for number in range(100):
                await fleet.put(key, b"%d" % number)

        await asyncio.gather(*(write(f"worker.{number}") for number in range(10)))
        await mirror.wait_for(lambda m: set(m.items().values()) == {"99"}, 5)
        assert mirror.num_snapshots > 2
        assert set(latest.values()) == {99}
