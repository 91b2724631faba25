"""An agent with real fronts and ranks (the synthetic back end), steered through the buckets as the leader does."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared import messages, names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import Done, Failed, Ping, Pong, ResumeChoice
from shared.process import is_running
from shared.records import Assigned, AssignmentRecord, ModelRecord, ReplicaRecord
from shared.settings import SourceSettings, WorkerSettings
from tests.support.eventually import eventually
from tests.support.owner import Owner
from tests.support.synthetic import write_synthetic
from tests.support.tiny import make_checkpoint
from worker.agent import keeper
from worker.agent.agent import Agent
from worker.agent.errors import NameTaken

MODEL = "test/synthetic"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as far as the synthetic back end reads it."""
    return write_synthetic(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights. Made beforehand: it takes seconds, in which no bus could be served."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def fleet(bus: Bus) -> AsyncIterator[Fleet]:
    async with Fleet(bus) as fleet:
        yield fleet


class Leader:
    """Writes assignments."""

    def __init__(self, bus: Bus, worker: str) -> None:
        self._bucket = Bucket(bus, names.PLAN)
        self._worker = worker
        self.generation = 0

    async def assign(self, *models: ModelRecord, epoch: int = 1, generation: int | None = None) -> None:
        self.generation = self.generation + 1 if generation is None else generation
        record = AssignmentRecord(
            worker=self._worker,
            epoch=epoch,
            generation=self.generation,
            models=[Assigned(model=model) for model in models],
        )
        await self._bucket.put(names.want_key(self._worker), messages.encode(record))


def synthetic(model_dir: Path, id: str = MODEL, **options: Any) -> ModelRecord:
    return ModelRecord(id=id, source=str(model_dir), backend="synthetic", options={"tokens_per_s": 100} | options)


def settings_for(broker: EmbeddedBroker, tmp_path: Path, **changes: Any) -> WorkerSettings:
    values: dict[str, Any] = {"memory_bytes": 1 << 30, "device": "cpu", "cores": 2, "slots": 4, "drain_grace_s": 5.0}
    values["standby"] = False  # it has tests of its own
    return WorkerSettings(name="w1", state_dir=tmp_path, bus=broker.bus_settings("worker"), **(values | changes))


@asynccontextmanager
async def running(
    broker: EmbeddedBroker, tmp_path: Path, **changes: Any
) -> AsyncIterator[tuple[Agent, "asyncio.Task[None]"]]:
    agent = Agent(settings_for(broker, tmp_path, **changes), "w1")
    ready = asyncio.Event()
    task = asyncio.create_task(agent.run(ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield agent, task
    finally:
        agent.stop()
        await asyncio.gather(task, return_exceptions=True)


def replica_of(fleet: Fleet, model: str, state: str = "ready") -> ReplicaRecord | None:
    return next((r for r in fleet.replicas_of(model) if r.state == state), None)


async def ready_replica(fleet: Fleet, model: str = MODEL, timeout_s: float = 20.0) -> ReplicaRecord:
    await fleet.wait_for(lambda fleet: replica_of(fleet, model), timeout_s)
    replica = replica_of(fleet, model)
    assert replica is not None
    return replica


def are_gone(*pids: int) -> bool:
    return not any(is_running(pid) for pid in pids)


async def test_an_assigned_model_loads_serves_and_goes(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    states: list[tuple[str, str]] = []
    fleet.on_change(lambda _, r: states.append((r.state, r.stage)) if isinstance(r, ReplicaRecord) else None)
    mirrors = {"lab": SourceSettings(endpoint="http://127.0.0.1:9"), "attic": SourceSettings(endpoint="http://b")}
    async with running(broker, tmp_path, sources=mirrors):
        leader = Leader(bus, "w1")
        await leader.assign(synthetic(model_dir))
        replica = await ready_replica(fleet)
        assert states[0][0] == "loading"
        assert fleet.workers["w1"].mirrors == ["attic", "lab"]
        assert (replica.worker, replica.devices, replica.slots, replica.context_limit) == ("w1", ["cpu"], 4, 512)
        assert len(replica.pids) == 2 and not are_gone(*replica.pids)
        worker = fleet.workers["w1"]
        assert worker.replicas == [replica.id] and worker.generation == 1
        assert worker.devices[0].reserved_bytes == replica.reserved_bytes > 0

        owner = await Owner(bus, MODEL).start()
        done = await owner.finished(await owner.submit(owner.job(max_tokens=5)))
        assert isinstance(done, Done) and done.usage.completion_tokens == 5

        await leader.assign()
        await fleet.wait_for(lambda fleet: not fleet.replicas, 10)
        assert are_gone(*replica.pids)
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].devices[0].reserved_bytes == 0, 5)
    await fleet.wait_for(lambda fleet: not fleet.workers, 2)


async def test_a_real_model_with_weights(
    tiny_dir: Path, broker: EmbeddedBroker, bus: Bus, fleet: Fleet, tmp_path: Path
) -> None:
    async with running(broker, tmp_path, memory_bytes=2 << 30, slots=2, prefill_tokens=32):
        model = ModelRecord(id="tiny", source=str(tiny_dir), sampling={"temperature": 0.0})
        await Leader(bus, "w1").assign(model)
        replica = await ready_replica(fleet, "tiny", 60)
        assert replica.context_limit == 512 and replica.fingerprint
        assert 0 < replica.blocks_total * replica.block_tokens <= 2 * 2048 + 64
        owner = await Owner(bus, "tiny").start()
        streams = [await owner.submit(owner.job(max_tokens=12, ignore_eos=True)) for _ in range(2)]
        for stream in streams:
            assert isinstance(await owner.finished(stream), Done)
        assert streams[0].ids == streams[1].ids and len(streams[0].ids[0]) == 12
        again = owner.job(max_tokens=12, ignore_eos=True, attempt=2, resume=[ResumeChoice(streams[0].ids[0][:5])])
        resumed = await owner.submit(again)
        resumed.ids = [streams[0].ids[0][:5]]
        assert isinstance(await owner.finished(resumed), Done) and resumed.ids == streams[0].ids


async def test_a_download_is_over_before_the_size_is_found_out(
    broker: EmbeddedBroker,
    bus: Bus,
    fleet: Fleet,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leader lets others load beside a download, and not beside what is about to take its memory."""

    def slowly(*arguments: Any, **fields: Any) -> Any:
        time.sleep(0.5)
        return size(*arguments, **fields)

    size = keeper.size
    monkeypatch.setattr(keeper, "size", slowly)
    async with running(broker, tmp_path):
        await Leader(bus, "w1").assign(synthetic(model_dir))
        await fleet.wait_for(lambda fleet: replica_of(fleet, MODEL, "loading"), 10)
        await fleet.wait_for(lambda fleet: _has_stage(fleet, "wait"), 5)
        replica = replica_of(fleet, MODEL, "loading")
        assert replica is not None and not replica.reserved_bytes
        await ready_replica(fleet)


def _has_stage(fleet: Fleet, stage: str) -> bool:
    return any(one.stage == stage for one in fleet.replicas_of(MODEL))


async def test_an_older_assignment_is_refused(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        leader = Leader(bus, "w1")
        await leader.assign(epoch=5, generation=7)
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].generation == 7, 5)
        await leader.assign(synthetic(model_dir), epoch=4, generation=9)
        await leader.assign(synthetic(model_dir, "second"), epoch=5, generation=8)
        await ready_replica(fleet, "second")
        assert not fleet.replicas_of(MODEL) and fleet.workers["w1"].epoch == 5


async def test_what_does_not_fit_is_a_failure_with_numbers(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path, memory_bytes=300 << 20):
        leader = Leader(bus, "w1")
        first, second = synthetic(model_dir, "first"), synthetic(model_dir, "second")
        await leader.assign(first)
        await ready_replica(fleet, "first")
        await leader.assign(first, second)
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].failures, 10)
        (failure,) = fleet.workers["w1"].failures
        assert failure.model == "second" and failure.retry_at_s > failure.at_s
        assert "needs 268 MB on cpu, where" in failure.reason and "reserved" in failure.reason
        await leader.assign(second)  # room at last
        await ready_replica(fleet, "second")
        await fleet.wait_for(lambda fleet: not fleet.workers["w1"].failures, 5)


async def test_a_bad_path_is_a_failure_and_tried_again_later(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        path = tmp_path / "not there yet"
        await Leader(bus, "w1").assign(synthetic(path))
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].failures, 10)
        (failure,) = fleet.workers["w1"].failures
        assert str(path) in failure.reason and failure.attempts >= 1
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].failures[0].attempts >= 2, 10)
        path.symlink_to(model_dir)
        await ready_replica(fleet)


async def test_a_killed_front_takes_its_rank_along_and_is_started_again(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        await Leader(bus, "w1").assign(synthetic(model_dir))
        replica = await ready_replica(fleet)
        os.kill(replica.pids[0], signal.SIGKILL)
        await fleet.wait_for(lambda fleet: replica.id not in fleet.replicas, 2)
        await eventually(lambda: are_gone(*replica.pids), 2)
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].failures, 2)
        assert "signal 9" in fleet.workers["w1"].failures[0].reason
        again = await ready_replica(fleet)
        assert again.id != replica.id
        await fleet.wait_for(lambda fleet: not fleet.workers["w1"].failures, 2)


async def test_drain_lets_running_jobs_finish(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path) as (agent, task):
        await Leader(bus, "w1").assign(synthetic(model_dir))
        replica = await ready_replica(fleet)
        owner = await Owner(bus, MODEL).start()
        stream = await owner.submit(owner.job(max_tokens=100))
        await owner.until(lambda: stream.ids[0])
        agent.drain()
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].state == "draining", 2)
        assert isinstance(await owner.finished(stream), Done)
        await asyncio.wait_for(task, 5)
        assert are_gone(*replica.pids)


async def test_a_second_drain_ends_at_once(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path, drain_grace_s=60.0) as (agent, task):
        await Leader(bus, "w1").assign(synthetic(model_dir, tokens_per_s=10))
        replica = await ready_replica(fleet)
        owner = await Owner(bus, MODEL).start()
        stream = await owner.submit(owner.job(max_tokens=400))
        await owner.until(lambda: stream.ids[0])
        agent.drain()
        await fleet.wait_for(lambda fleet: fleet.replicas[replica.id].state == "draining", 5)
        agent.drain()
        await asyncio.wait_for(task, 5)
        await eventually(lambda: are_gone(*replica.pids), 2)


async def test_a_short_grace_hands_jobs_back(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path, drain_grace_s=0.3) as (agent, task):
        await Leader(bus, "w1").assign(synthetic(model_dir, tokens_per_s=10))
        await ready_replica(fleet)
        owner = await Owner(bus, MODEL).start()
        stream = await owner.submit(owner.job(max_tokens=400))
        await owner.until(lambda: stream.ids[0])
        agent.drain()
        failed = await owner.finished(stream)
        assert isinstance(failed, Failed) and failed.kind == "shutting_down"
        await asyncio.wait_for(task, 5)


async def test_the_next_model_waits_for_the_memory_of_one_that_drains(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path, memory_bytes=300 << 20):
        leader = Leader(bus, "w1")
        await leader.assign(synthetic(model_dir, "first"))
        await ready_replica(fleet, "first")
        owner = await Owner(bus, "first").start()
        stream = await owner.submit(owner.job(max_tokens=150))
        await owner.until(lambda: stream.ids[0])
        await leader.assign(synthetic(model_dir, "second"))
        await fleet.wait_for(lambda fleet: replica_of(fleet, "second", "loading"), 5)
        await fleet.wait_for(lambda fleet: replica_of(fleet, "first", "draining"), 5)
        waiting = replica_of(fleet, "second", "loading")
        assert waiting is not None and (waiting.stage, "unload" in waiting.reason) == ("wait", True)
        assert isinstance(await owner.finished(stream), Done)
        await ready_replica(fleet, "second")
        assert not fleet.workers["w1"].failures


async def test_a_changed_model_is_started_anew(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        leader = Leader(bus, "w1")
        await leader.assign(synthetic(model_dir))
        first = await ready_replica(fleet)
        await leader.assign(synthetic(model_dir))  # the same again
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].generation == 2, 5)
        assert not are_gone(*first.pids)
        await leader.assign(synthetic(model_dir, tokens_per_s=50))
        await fleet.wait_for(lambda fleet: first.id not in fleet.replicas, 10)
        assert (await ready_replica(fleet)).id != first.id


async def test_an_agent_answers_pings_and_refuses_a_twin(broker: EmbeddedBroker, bus: Bus, tmp_path: Path) -> None:
    async with running(broker, tmp_path):
        answer = await bus.request(names.worker_rpc("w1"), messages.encode(Ping()), timeout_s=5.0)
        assert json.loads(answer) == json.loads(messages.encode(Pong(phase="agent")))
        with pytest.raises(NameTaken, match="w1"):
            await Agent(settings_for(broker, tmp_path), "w1").run()


@asynccontextmanager
async def worker_process(
    broker: EmbeddedBroker, tmp_path: Path, *, standby: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`plexus-worker` as a process of its own."""
    bus = broker.bus_settings("worker")
    config = tmp_path / "worker.toml"
    config.write_text(
        'device = "cpu"\ncores = 2\nslots = 4\nmemory_bytes = 1000000000\ndrain_grace_s = 5\n'
        f"standby = {str(standby).lower()}\n"
        f'[bus]\nurl = "{bus.url}"\nuser = "{bus.user}"\npassword = "{bus.password}"\n'
    )
    with (tmp_path / "worker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", "--config", str(config), "--state-dir", str(tmp_path), "--name", "w1",
            "--json", stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 15)
        assert json.loads(line) == {"worker": "w1", "pid": process.pid}
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_killed_agent_takes_everything_along(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with worker_process(broker, tmp_path) as process:
        await Leader(bus, "w1").assign(synthetic(model_dir))
        replica = await ready_replica(fleet)
        family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert set(replica.pids) <= set(family)
        process.kill()
        await eventually(lambda: are_gone(*family), 2)
    async with worker_process(broker, tmp_path):  # the records of the dead one are no obstacle
        assert (await ready_replica(fleet)).id


async def test_sigterm_drains_and_exits_with_0(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with worker_process(broker, tmp_path) as process:
        await Leader(bus, "w1").assign(synthetic(model_dir))
        replica = await ready_replica(fleet)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert are_gone(*replica.pids)
        await fleet.wait_for(lambda fleet: not fleet.workers and not fleet.replicas, 2)


async def test_sigterm_ends_a_worker_that_waits_for_a_server(broker: EmbeddedBroker, tmp_path: Path) -> None:
    agent = Agent(settings_for(broker, tmp_path), "w1")
    broker.kill()
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(0)
    agent.drain()
    await asyncio.wait_for(task, 5)


async def test_an_outage_of_the_bus_stops_nothing(
    broker: EmbeddedBroker, bus: Bus, fleet: Fleet, model_dir: Path, tmp_path: Path
) -> None:
    async with running(broker, tmp_path):
        await Leader(bus, "w1").assign(synthetic(model_dir))
        replica = await ready_replica(fleet)
        broker.kill()
        await asyncio.sleep(0.5)
        await broker.start()
        await fleet.wait_for(lambda fleet: fleet.workers["w1"].at_s > replica.at_s + 1.0, 10)
        assert fleet.replicas[replica.id].state == "ready" and not are_gone(*replica.pids)
