"""Keys of a bucket."""

import asyncio

import pytest

from shared import names
from shared.errors import ApiError, NoResponders, WrongRevision
from shared.kv import Bucket
from tests.support.eventually import eventually

KEY = "worker.a"


@pytest.fixture
def fleet(bus) -> Bucket:
    return Bucket(bus, names.FLEET)


async def test_put_get_delete(fleet):
    assert await fleet.get(KEY) is None
    first = await fleet.put(KEY, b"one")
    second = await fleet.put(KEY, b"two")
    assert second > first
    assert await fleet.get(KEY) == (b"two", second)
    await fleet.delete(KEY)
    assert await fleet.get(KEY) is None
    await fleet.delete("worker.never")


async def test_empty_value_is_a_value(fleet):
    revision = await fleet.put(KEY, b"")
    assert await fleet.get(KEY) == (b"", revision)


async def test_create_wants_an_absent_key(fleet):
    await fleet.create(KEY, b"one")
    with pytest.raises(WrongRevision) as caught:
        await fleet.create(KEY, b"two")
    assert caught.value.key == KEY
    await fleet.delete(KEY)
    revision = await fleet.create(KEY, b"three")
    assert await fleet.get(KEY) == (b"three", revision)


async def test_update_wants_the_revision_that_was_read(fleet):
    first = await fleet.put(KEY, b"one")
    second = await fleet.update(KEY, b"two", first)
    with pytest.raises(WrongRevision) as caught:
        await fleet.update(KEY, b"three", first)
    assert caught.value.revision == first
    assert await fleet.get(KEY) == (b"two", second)
    with pytest.raises(WrongRevision):
        await fleet.delete(KEY, first)
    await fleet.delete(KEY, second)
    assert await fleet.get(KEY) is None


async def test_expired_key_is_absent_and_can_be_made_again(fleet):
    await fleet.put(KEY, b"one", ttl_s=1)
    assert await fleet.get(KEY) is not None
    await eventually(lambda: _is_absent(fleet))
    value, mark = await fleet.last(KEY)
    assert value is None and mark > 0  # the server's mark of the expiry
    revision = await fleet.create(KEY, b"two", ttl_s=60)
    assert await fleet.get(KEY) == (b"two", revision)


async def _is_absent(bucket: Bucket) -> bool:
    return await bucket.get(KEY) is None


async def test_later_put_without_lifetime_stays(fleet):
    await fleet.put(KEY, b"mortal", ttl_s=1)
    await fleet.put("worker.other", b"mortal", ttl_s=1)
    await fleet.put(KEY, b"immortal")
    await eventually(lambda: _is_gone(fleet, "worker.other"))
    assert (await fleet.get(KEY))[0] == b"immortal"


async def _is_gone(bucket: Bucket, key: str) -> bool:
    return await bucket.get(key) is None


async def test_only_one_of_many_creates(connect, fleet):
    buckets = [Bucket(await connect("gateway", f"g{number}"), names.FLEET) for number in range(6)]
    await fleet.put(KEY, b"old")
    await fleet.delete(KEY)
    results = await asyncio.gather(*(bucket.create(KEY, b"x") for bucket in buckets), return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, WrongRevision) for result in results) == 5


async def test_plan_keeps_history_and_has_no_lifetimes(bus):
    plan = Bucket(bus, names.PLAN)
    for number in range(12):
        await plan.put("model.x", b"%d" % number)
    info = await bus.api("STREAM.INFO.KV_plan", {})
    assert info["state"]["messages"] == 10
    with pytest.raises(ApiError):
        await plan.put("model.x", b"", ttl_s=5)
    await plan.delete("model.x")
    assert await plan.get("model.x") is None


async def test_without_the_bucket_nobody_answers(connect):
    bucket = Bucket(await connect(), names.FLEET)
    with pytest.raises(NoResponders):
        await bucket.get(KEY)
    with pytest.raises(NoResponders):
        await bucket.put(KEY, b"")


async def test_nothing_is_left_of_a_deleted_key(fleet, bus, monkeypatch):
    monkeypatch.setattr("shared.kv.DELETED_S", 1)
    config = (await bus.api("STREAM.INFO.KV_fleet", {}))["config"]
    await bus.api("STREAM.UPDATE.KV_fleet", config | {"subject_delete_marker_ttl": 10**9})
    await fleet.put(KEY, b"one")
    await fleet.delete(KEY)
    await eventually(lambda: _holds_nothing(bus))


async def _holds_nothing(bus) -> bool:
    return (await bus.api("STREAM.INFO.KV_fleet", {}))["state"]["messages"] == 0
