"""One holder among many, and none that believes it leads when it does not."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time

import pytest

from shared import names
from shared.bus import Msg
from shared.kv import Bucket
from shared.lease import Lease
from shared.settings import BusSettings
from tests.support.eventually import eventually
from tests.support.freeze import frozen

KEY = names.LEASE_PLACER


@pytest.fixture
async def contenders(request, bus, connect):
    """Six candidacies on three connections; a test may ask for another lifetime."""
    ttl_s = getattr(request, "param", 2)
    buses = [await connect("gateway", f"g{number}") for number in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Lease(buses[number % 3], KEY, f"holder{number}", ttl_s=ttl_s, renew_s=0.3))
            for number in range(6)
        ]


def holders(leases: list[Lease]) -> list[Lease]:
    return [lease for lease in leases if lease.held]


@pytest.mark.parametrize("contenders", [600], indirect=True)  # given back, not expired
async def test_one_of_many_and_the_next_when_it_goes(contenders):
    epochs: list[int] = []
    left = list(contenders)
    while left:
        await eventually(lambda: len(holders(left)) == 1)
        (leader,) = holders(left)
        epochs.append(leader.epoch)
        left.remove(leader)
        await leader.close()
        assert not leader.held and leader.epoch == 0
        if left:
            await eventually(lambda: holders(left), pause_s=0.002)
    assert epochs == sorted(set(epochs)) and len(epochs) == 6


async def test_holder_keeps_it(contenders, bus):
    await eventually(lambda: holders(contenders))
    (leader,) = holders(contenders)
    epoch = leader.epoch
    until = time.monotonic() + 3  # longer than its lifetime
    while time.monotonic() < until:
        assert holders(contenders) == [leader] and leader.epoch == epoch
        await asyncio.sleep(0.02)
    assert (await Bucket(bus, names.FLEET).get(KEY))[0] == json.dumps(
        {"holder": leader.holder, "epoch": epoch, "v": 1}, separators=(",", ":")
    ).encode()


async def test_epoch_grows_also_when_no_trace_is_left(bus):
    async with Lease(bus, KEY, "first") as lease:
        first = await lease.wait_held(5)
    await bus.api("STREAM.PURGE.KV_fleet", {})
    async with Lease(bus, KEY, "second") as lease:
        second = await lease.wait_held(5)
    assert second > first


_HOLDER = """
import asyncio, sys
from shared.bus import Bus
from shared.lease import Lease
from shared.settings import BusSettings

async def main():
    settings = BusSettings.model_validate_json(sys.stdin.readline())
    async with await Bus.connect(settings, kind="gateway", ident="child") as bus:
        async with Lease(bus, sys.argv[1], "child") as lease:
            print(await lease.wait_held(), flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def holder_process(settings: BusSettings):
    """(process, epoch) of a process that holds the lease."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDER, KEY, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        yield process, int(await asyncio.wait_for(process.stdout.readline(), 20))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process.stdin.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_takeover_from_a_holder_that_died_or_hangs(broker, bus, how):
    async with (
        holder_process(broker.bus_settings("gateway")) as (process, epoch),
        Lease(bus, KEY, "standby") as standby,
    ):
        with pytest.raises(TimeoutError):
            await standby.wait_held(0.5)
        os.kill(process.pid, how)
        assert await standby.wait_held(20) > epoch


async def test_deposed_holder_knows_before_its_lifetime_is_over(broker, bus):
    async with Lease(bus, KEY, "alone", ttl_s=2, renew_s=0.3) as lease:
        turns: list[bool] = []
        lease.on_change(turns.append)
        await lease.wait_held(5)
        renewed = lease._valid_until
        await eventually(lambda: lease._valid_until > renewed)
        with frozen(broker.pid):
            await asyncio.sleep(0.1)  # a renewal may have been on its way when the server froze
            last = lease._valid_until
            looks = []
            while len(turns) < 2:
                before, held = time.monotonic(), lease.held
                looks.append((before, held, time.monotonic()))
                await asyncio.sleep(0.01)
        assert all(held for _, held, after in looks if after < last)
        assert not any(held for before, held, _ in looks if before >= last)
        assert turns == [True, False]


async def test_holder_whose_loop_stands_still_is_deposed_by_the_clock(bus):
    async with Lease(bus, KEY, "slow", ttl_s=1, renew_s=0.2) as lease:
        await lease.wait_held(5)
        time.sleep(1.0)  # noqa: ASYNC251  (nothing of this process can run)
        assert not lease.held and lease.epoch == 0


async def test_deleted_key_makes_a_new_holder_soon(bus, connect):
    async with (
        Lease(bus, KEY, "first", ttl_s=600, renew_s=300) as first,  # nothing of it may wait for the next renewal
        Lease(await connect("gateway", "two"), KEY, "second", ttl_s=600, renew_s=300) as second,
    ):
        await eventually(lambda: first.held or second.held)
        before = first.epoch + second.epoch
        await Bucket(bus, names.FLEET).delete(KEY)
        await eventually(lambda: first.held != second.held and first.epoch + second.epoch > before, pause_s=0.001)


async def test_keeps_it_over_a_short_restart(broker, bus):
    async with Lease(bus, KEY, "first") as lease:
        epoch = await lease.wait_held(5)
        broker.kill()
        await broker.start()
        renewed = lease._valid_until
        await eventually(lambda: lease._valid_until > renewed)
        assert lease.held and lease.epoch == epoch


async def test_renewal_whose_answer_was_lost(bus, monkeypatch):
    monkeypatch.setattr("shared.kv.TIMEOUT_S", 0.1)
    async with Lease(bus, KEY, "first", renew_s=0.3) as lease:
        epoch = await lease.wait_held(5)
        (answers,) = (s for s in bus._subscriptions if s._listener == bus._take_answer)
        lost: list[Msg] = []
        answers._listener = lost.append
        await eventually(lambda: lost)
        answers._listener = bus._take_answer
        renewed = lease._valid_until
        await eventually(lambda: lease._valid_until > renewed)
        assert lease.held and lease.epoch == epoch


async def test_rubbish_in_the_key_harms_nobody(bus):
    bucket = Bucket(bus, names.FLEET)
    async with Lease(bus, KEY, "first", renew_s=0.2) as lease:
        await lease.wait_held(5)
        await bucket.put(KEY, b"rubbish", ttl_s=1)
        await eventually(lambda: not lease.held)
        await lease.wait_held(5)


async def test_callback_that_fails_stops_nothing(bus):
    def fail(held: bool) -> None:
        raise RuntimeError("on purpose")

    async with Lease(bus, KEY, "first") as lease:
        lease.on_change(fail)
        await lease.wait_held(5)
        await lease.close()
        await lease.close()


def test_renewal_must_fit_into_the_lifetime():
    with pytest.raises(ValueError, match="renewed"):
        Lease(None, KEY, "x", ttl_s=1, renew_s=0.6)
