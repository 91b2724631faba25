"""The spare replica of a host, with real processes: taken by a load, made anew, and gone with whoever it depends on."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import ModelRecord
from tests.integration.test_agent import Leader, are_gone, ready_replica, worker_process
from tests.support.eventually import eventually
from tests.support.fake_front import FAKE_FRONT
from tests.support.tiny import make_checkpoint
from worker.agent.front_process import FRONT, FrontProcess
from worker.agent.standby import Standby


@pytest.fixture
async def fleet(bus: Bus) -> AsyncIterator[Fleet]:
    async with Fleet(bus) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def kept(standby: Standby) -> AsyncIterator[None]:
    task = asyncio.create_task(standby.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


async def taken(standby: Standby, timeout_s: float = 10.0) -> FrontProcess:
    front = await eventually(standby.take, timeout_s)
    assert isinstance(front, FrontProcess)
    return front


async def test_one_is_taken_and_the_next_is_made() -> None:
    standby = Standby(FAKE_FRONT, lambda: False, quiet_s=0.01)
    async with kept(standby), await taken(standby) as first:
        assert standby.take() is None
        async with await taken(standby) as second:
            assert first.pid != second.pid
            assert not are_gone(first.pid) and not are_gone(second.pid)
    assert are_gone(first.pid, second.pid)


async def test_none_is_made_while_something_loads() -> None:
    loading = asyncio.Event()
    asked = asyncio.Event()

    def is_loading() -> bool:
        asked.set()
        return loading.is_set()

    standby = Standby(FAKE_FRONT, is_loading, quiet_s=0.01)
    async with kept(standby), await taken(standby):
        loading.set()
        await asked.wait()
        assert len(family(os.getpid())) == len({os.getpid(), *family(os.getpid())})
        assert standby.take() is None
        loading.clear()
        async with await taken(standby):
            pass


async def test_one_that_dies_is_replaced() -> None:
    standby = Standby(FAKE_FRONT, lambda: False, quiet_s=0.01)
    async with kept(standby):
        spare = await eventually(lambda: standby.pid)
        os.kill(spare, signal.SIGKILL)
        again = await eventually(lambda: standby.pid if standby.pid != spare else 0, 10)
        assert again and are_gone(spare)
    assert are_gone(again)


async def test_a_front_whose_spare_rank_dies_ends_and_the_other_way_round() -> None:
    async with FrontProcess([*FRONT, "--warm"]) as front:
        await front.warm()
        _, rank = family(front.pid)
        os.kill(rank, signal.SIGKILL)
        await asyncio.wait_for(front.ended(), 10)
    async with FrontProcess([*FRONT, "--warm"]) as front:
        _, rank = await eventually(lambda: pair if len(pair := family(front.pid)) == 2 else None, 20)
        os.kill(front.pid, signal.SIGKILL)
        await eventually(lambda: are_gone(rank))


async def test_a_replica_made_of_a_spare_ends_like_any_other(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, tiny_dir: Path, tmp_path: Path
) -> None:
    async with worker_process(broker, tmp_path, standby=True) as process:
        spare = await eventually(lambda: pids if len(pids := family(process.pid)) == 3 else None, 60)
        await eventually(lambda: "standby.ready" in (tmp_path / "worker.log").read_text(), 60)
        await Leader(bus, "w1").assign(ModelRecord(id="tiny", source=str(tiny_dir)))
        replica = await ready_replica(fleet, "tiny", 60)
        assert replica.pids == spare[1:]
        front, rank = replica.pids

        os.kill(rank, signal.SIGKILL)  # its front starts another
        await eventually(lambda: are_gone(rank))
        await fleet.wait_for(lambda fleet: rank not in fleet.replicas[replica.id].pids, 5)
        replica = await ready_replica(fleet, "tiny", 60)
        assert replica.pids[0] == front and replica.pids[1] != rank

        os.kill(front, signal.SIGKILL)  # the agent starts another
        await eventually(lambda: are_gone(*replica.pids))
        await fleet.wait_for(lambda fleet: len(fleet.replicas) == 1 and replica.id not in fleet.replicas, 10)
        everyone = await eventually(lambda: pids if len(pids := family(process.pid)) >= 3 else None, 20)

        process.kill()
        await eventually(lambda: are_gone(*everyone))
