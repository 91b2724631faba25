"""A front with a real nats-server, a real tokeniser and a rank that only pretends."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared import messages, names, topology
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.errors import BusError
from shared.messages import Cancel, Claimed, Confirm, Done, Failed, Job, ResumeChoice, Working
from shared.process import is_running
from tests.support.eventually import eventually
from tests.support.fake_rank import CONTEXT, token
from tests.support.front import MODEL, running
from tests.support.owner import Owner, Stream
from tests.support.synthetic import write_synthetic
from worker.front import front as front_module
from worker.front import health
from worker.front.front import EXIT_FAILED
from worker.front.owners import GoneOwners
from worker.text.model_text import ModelText

IDS = list(range(32, 250))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory without weights: all that a front reads."""
    return write_synthetic(tmp_path_factory.mktemp("model"), CONTEXT)


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return await Owner(bus, MODEL).start()


async def jobs_left(bus: Bus) -> int:
    return int((await bus.api(f"STREAM.INFO.{names.JOBS}", {}))["state"]["messages"])


async def until_empty(bus: Bus, timeout_s: float = 5.0) -> None:
    async def is_empty() -> bool:
        return await jobs_left(bus) == 0

    await eventually(is_empty, timeout_s, 0.02)


async def is_equal(get: Callable[[], Awaitable[Any]], expected: Any) -> bool:
    return bool(await get() == expected)


def whole(job: Job, choice: int = 0) -> list[int]:
    """All ids that the rank makes for a choice."""
    assert job.sampling.max_tokens is not None
    return [token(job.sampling.seed, choice, position, IDS) for position in range(job.sampling.max_tokens)]


def text_of(model_dir: Path, job: Job, ids: list[int]) -> str:
    model = ModelText.load(model_dir)
    stream = model.stream(job.prompt, stop=job.sampling.stop, prompt_ids=model.encode(job.prompt))
    return stream.feed(ids).text + stream.finish("length").text


async def tokens(owner: Owner, stream: Stream, count: int) -> None:
    await owner.until(lambda: len(stream.ids[0]) >= count)


def logged(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def test_a_job_runs_to_done_and_leaves_the_queue_when_confirmed(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    owner.auto_confirm = False
    async with running(broker, model_dir) as harness:
        job = owner.job(max_tokens=40, n=2, seed=5)
        stream = await owner.submit(job)
        done = await owner.finished(stream)
        assert isinstance(done, Done)
        assert [a.fingerprint for a in stream.accepted] == ["fake"]
        assert stream.ids == [whole(job, 0), whole(job, 1)]
        assert stream.text == [text_of(model_dir, job, ids) for ids in stream.ids]
        assert stream.finish == ["length", "length"]
        assert done.usage.prompt_tokens == stream.accepted[0].prompt_tokens > 0
        assert (done.usage.completion_tokens, done.usage.cached_tokens) == (80, 3)
        assert done.timings.decode_s > 0 and done.timings.prefill_s > 0
        assert await jobs_left(bus) == 1
        await owner.tell(stream, Confirm([(job.id, job.attempt)]))
        await until_empty(bus)
        assert harness.status.state == "ready" and harness.status.context_limit == CONTEXT


async def test_without_confirm_done_comes_again(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.front.jobs.CONFIRM_S", 0.4)
    owner.auto_confirm = False
    async with running(broker, model_dir):
        stream = await owner.submit(owner.job(max_tokens=3))
        await owner.until(lambda: len(stream.verdicts) >= 2)
        assert stream.verdicts[0] == stream.verdicts[1]


async def test_a_job_of_nobody_is_acked_at_its_end(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir):
        stream = await owner.submit(owner.job(owner=None, max_tokens=4))
        assert isinstance(await owner.finished(stream), Done)
        await until_empty(bus)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_cancel(broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, phase: str) -> None:
    async with running(broker, model_dir, prefill_s=5.0 if phase == "prefill" else 0.0, hz=100) as harness:
        job = owner.job(max_tokens=400)
        stream = await owner.submit(job)
        if phase == "prefill":
            await owner.until(lambda: any(isinstance(i, Working) and i.phase == "prefill" for i in stream.items))
        else:
            await tokens(owner, stream, 5)
        await owner.tell(stream, Cancel([(job.id, job.attempt)]))
        await until_empty(bus)
        await harness.until(lambda status: status.running == 0)
        assert not stream.verdicts
        assert (await owner.replay(job.id, job.attempt, [0], stream.replica)).gone


async def test_replay_brings_what_is_missing_as_one_delta(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir):
        job = owner.job(max_tokens=30, seed=2)
        stream = await owner.submit(job)
        await owner.finished(stream)
        answer = await owner.replay(job.id, 1, [10], stream.replica)
        accepted, delta, done = answer.items
        assert (accepted, done) == (stream.accepted[0], stream.verdicts[0])
        assert isinstance(delta, messages.Delta) and delta.start == 10 and delta.ids == whole(job)[10:]
        assert stream.text[0].endswith(delta.text) and delta.finish == "length"
        assert (await owner.replay(job.id, 2, [10], stream.replica)).gone


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"temperature": 9.0}, "invalid_request", "temperature"),
        ({"n": 17}, "invalid_request", "n"),
        ({"prompt": "word " * 2000}, "context_length_exceeded", "prompt"),
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"deadline_s": 1.0}, "deadline_exceeded", None),
    ],
)
async def test_what_cannot_be_served_fails_and_leaves_the_queue(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, fields: dict[str, Any], kind: str, param: str
) -> None:
    async with running(broker, model_dir):
        failed = await owner.finished(await owner.submit(owner.job(**fields)))
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.param) == (kind, param)
        await until_empty(bus)


async def test_a_refusal_of_the_rank_reaches_the_owner(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir, refuse="no such bias"):
        failed = await owner.finished(await owner.submit(owner.job()))
        assert isinstance(failed, Failed) and (failed.kind, failed.message) == ("engine_error", "no such bias")
        await until_empty(bus)


async def test_a_stop_string_ends_a_choice_and_frees_the_rank(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with running(broker, model_dir, hz=50, log=str(log)) as harness:
        plain = owner.job(max_tokens=60, seed=1)
        text = text_of(model_dir, plain, whole(plain))
        stop = text[20:23]
        job = owner.job(max_tokens=60, seed=1, stop=[stop])
        stream = await owner.submit(job)
        done = await owner.finished(stream)
        assert stream.text[0] == text[: text.index(stop)] and stream.finish == ["stop"]
        assert isinstance(done, Done) and done.usage.completion_tokens == len(stream.ids[0]) < 60
        await harness.until(lambda status: status.running == 0)
        assert len(logged(log)) <= len(stream.ids[0]) + 2


async def test_resume_sends_only_what_is_new(broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path) -> None:
    async with running(broker, model_dir):
        job = owner.job(max_tokens=30, n=2, seed=7, attempt=2)
        first, second = whole(job, 0), whole(job, 1)
        job.resume = [ResumeChoice(first[:12]), ResumeChoice(second, "length")]
        stream = await owner.submit(job)
        stream.ids = [first[:12], list(second)]
        stream.finish[1] = "length"
        done = await owner.finished(stream)
        assert isinstance(done, Done) and done.usage.completion_tokens == 60
        assert stream.ids == [first, second]
        text = text_of(model_dir, job, first)
        assert text.endswith(stream.text[0]) and 0 < len(stream.text[0]) < len(text) and stream.text[1] == ""


async def test_a_killed_rank_loses_its_jobs_at_once_and_comes_back(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir, hz=100) as harness:
        job = owner.job(max_tokens=400)
        stream = await owner.submit(job)
        await tokens(owner, stream, 3)
        os.kill(harness.rank_pid, signal.SIGKILL)
        failed = await owner.finished(stream)
        assert isinstance(failed, Failed) and failed.kind == "replica_lost"
        await until_empty(bus)
        await harness.until(lambda status: status.state == "loading" and "signal 9" in status.reason)
        await harness.until(lambda status: status.state == "ready")
        again = await owner.submit(owner.job(max_tokens=3))
        assert isinstance(await owner.finished(again), Done)


async def test_a_frozen_rank_is_hung_and_replaced(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HANG_S", 0.5)
    async with running(broker, model_dir, hz=100) as harness:
        stream = await owner.submit(owner.job(max_tokens=400))
        await tokens(owner, stream, 3)
        frozen = harness.rank_pid
        os.kill(frozen, signal.SIGSTOP)
        failed = await owner.finished(stream, 5.0)
        assert isinstance(failed, Failed) and failed.kind == "replica_lost" and "hung in decode" in failed.message
        await harness.until(lambda status: status.state == "ready" and status.pids[1] != frozen)
        assert not is_running(frozen)


async def test_a_rank_that_keeps_dying_fails_the_replica(
    broker: EmbeddedBroker, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(health, "MAX_DEATHS", 3)
    async with running(broker, model_dir) as harness:
        for _ in range(3):
            await harness.until(lambda status: status.state == "ready")
            pid = harness.rank_pid
            os.kill(pid, signal.SIGKILL)
            await harness.until(lambda status: status.state == "failed" or status.pids[1:] != [pid])  # noqa: B023
        assert await harness.task == EXIT_FAILED
        assert harness.status.state == "failed" and "3 times" in harness.status.reason


async def test_a_load_that_fails_ends_the_front_with_the_reason(broker: EmbeddedBroker, model_dir: Path) -> None:
    async with running(broker, model_dir, fail="no room for the weights") as harness:
        assert await harness.task == EXIT_FAILED
        assert (harness.status.state, harness.status.reason) == ("failed", "no room for the weights")


async def test_jobs_of_an_owner_that_is_gone_are_dropped(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GoneOwners.__init__, "__defaults__", (0.5,))
    async with running(broker, model_dir, hz=50) as harness:
        stream = await owner.submit(owner.job(max_tokens=450))
        await tokens(owner, stream, 3)
        await owner.vanish()
        await until_empty(bus, 3.0)
        await harness.until(lambda status: status.running == 0)


async def test_a_job_that_asks_for_it_is_adopted(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(GoneOwners.__init__, "__defaults__", (0.2,))
    async with running(broker, model_dir, hz=100, log=str(log)):
        stream = await owner.submit(owner.job(max_tokens=150, on_owner_lost="adopt"))
        await tokens(owner, stream, 3)
        await owner.vanish()
        await until_empty(bus, 10.0)
        assert len(logged(log)) == 150


async def test_a_redelivered_job_is_claimed_first(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    job = owner.job(max_tokens=10)
    owner.on_claim = lambda claim: Claimed(attempt=claim.attempt + 1, resume=[ResumeChoice(whole(job)[:4])])
    stream = await owner.submit(job)
    await steal(bus, job)
    async with running(broker, model_dir) as harness:
        stream.ids = [whole(job)[:4]]
        done = await owner.finished(stream)
        assert isinstance(done, Done) and done.attempt == 2
        assert [(c.job, c.attempt, c.replica) for c in owner.claims] == [(job.id, 1, harness.config.replica)]
        assert stream.ids == [whole(job)]
        await until_empty(bus)


async def test_a_redelivered_job_that_runs_elsewhere_is_dropped(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    stream = await owner.submit(owner.job(max_tokens=10))
    await steal(bus, owner.job())
    async with running(broker, model_dir):
        await until_empty(bus)
        assert len(owner.claims) == 1 and not stream.items


async def steal(bus: Bus, job: Job) -> None:
    """Take the next job and give it back at once, so that its next delivery is its second."""
    inbox = bus.new_inbox()
    taken: asyncio.Queue[Any] = asyncio.Queue()
    subscription = await bus.subscribe(inbox, taken.put)
    request = {"batch": 1, "expires": 2_000_000_000, "group": names.PRIORITY_GROUP}
    await bus.publish(names.pull_subject(job.model, "interactive"), json.dumps(request).encode(), reply=inbox)
    async with asyncio.timeout(3):
        message = await taken.get()
    await bus.publish(message.reply, b"-NAK")
    await subscription.unsubscribe()


async def test_a_redelivery_of_a_running_job_is_not_run_twice(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr("worker.front.jobs.PROGRESS_S", 1000.0)  # so that the queue gives the job out again
    async with running(broker, model_dir, hz=20, log=str(log)):
        job = owner.job(max_tokens=120)
        stream = await owner.submit(job)
        done = await owner.finished(stream, 15.0)
        assert isinstance(done, Done) and stream.ids == [whole(job)]
        assert len(logged(log)) == 120 and not owner.claims and len(stream.accepted) == 1
        info = await bus.consumer_info(names.JOBS, names.job_consumer(MODEL, "interactive"))
        assert info is not None and info["delivered"]["consumer_seq"] >= 2
        await until_empty(bus)


async def test_drain_finishes_what_runs_and_takes_nothing_new(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir, hz=100) as harness:
        stream = await owner.submit(owner.job(max_tokens=100))
        await tokens(owner, stream, 3)
        harness.front.drain(10.0)
        await harness.until(lambda status: status.state == "draining")
        late = await owner.submit(owner.job(max_tokens=3))
        assert await harness.task == 0
        assert isinstance(stream.verdicts[0], Done) and len(stream.ids[0]) == 100
        assert not late.items and await jobs_left(bus) == 1


async def test_drain_hands_back_what_does_not_finish(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir, hz=20) as harness:
        stream = await owner.submit(owner.job(max_tokens=400))
        await tokens(owner, stream, 2)
        pid = harness.rank_pid
        harness.front.drain(0.2)
        assert await harness.task == 0
        failed = await owner.finished(stream)
        assert isinstance(failed, Failed) and failed.kind == "shutting_down"
        assert not is_running(pid)


async def test_a_restarted_server_costs_no_token(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with running(broker, model_dir, hz=100, log=str(log)):
        jobs = [owner.job(max_tokens=300, seed=seed) for seed in range(3)]
        streams = [await owner.submit(job) for job in jobs]
        for stream in streams:
            await tokens(owner, stream, 10)
        broker.kill()
        await asyncio.sleep(0.3)
        await broker.start()
        for job, stream in zip(jobs, streams, strict=True):
            assert isinstance(await owner.finished(stream, 15.0), Done)
            assert stream.ids == [whole(job)] and stream.text[0] == text_of(model_dir, job, stream.ids[0])
        assert len(logged(log)) == 900 and not owner.claims
        await until_empty(bus, 10.0)
        after = await owner.submit(owner.job(max_tokens=3))
        assert isinstance(await owner.finished(after), Done)


async def test_batch_jobs_run_only_beside_free_slots(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir, slots=3, hz=50) as harness:
        interactive = [await owner.submit(owner.job(max_tokens=60)) for _ in range(3)]
        for stream in interactive:
            await tokens(owner, stream, 1)
        batch = await owner.submit(owner.job(max_tokens=3, job_class="batch"))
        await owner.until(lambda: any(stream.verdicts for stream in interactive))
        assert not batch.accepted
        assert isinstance(await owner.finished(batch), Done)
        assert harness.status.slots == 3


async def test_a_ping_tells_where_the_rank_is(broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path) -> None:
    async with running(broker, model_dir, prefill_s=3.0) as harness:
        stream = await owner.submit(owner.job())
        await owner.until(lambda: stream.accepted)

        async def pong() -> tuple[str, int, bool]:
            answer = await owner.ping(harness.config.replica)
            return answer.phase, answer.running, answer.hung

        await eventually(lambda: is_equal(pong, ("prefill", 1, False)))


async def test_a_pull_finds_a_consumer_that_is_made_later(
    broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path
) -> None:
    async with running(broker, model_dir) as harness:
        await harness.until(lambda status: status.state == "ready")
        await asyncio.sleep(front_module.TICK_S * 2)
        stream = await owner.submit(owner.job(max_tokens=2))
        assert isinstance(await owner.finished(stream, 3.0), Done)


async def test_what_is_no_job_is_deleted(broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path) -> None:
    async with running(broker, model_dir):
        await bus.ensure_consumer(MODEL, "interactive")
        await bus.enqueue(names.job_subject(MODEL, "interactive"), b'{"id": 7}', msg_id="x", ttl_s=None)
        await until_empty(bus)


async def test_the_bus_may_come_late(broker: EmbeddedBroker, model_dir: Path) -> None:
    broker.kill()
    async with running(broker, model_dir) as harness:
        await harness.until(lambda status: status.stage == "read")
        await broker.start()
        async with await Bus.connect(broker.bus_settings("gateway"), kind="gateway", ident="late") as bus:
            await topology.ensure(bus)
            owner = await Owner(bus, MODEL).start()
            try:
                assert isinstance(await owner.finished(await owner.submit(owner.job(max_tokens=2))), Done)
            except BusError as error:  # pragma: no cover
                pytest.fail(str(error))


async def test_the_replica_is_a_nats_service(broker: EmbeddedBroker, bus: Bus, owner: Owner, model_dir: Path) -> None:
    async with running(broker, model_dir) as harness:
        await owner.finished(await owner.submit(owner.job(max_tokens=2)))
        replica = harness.config.replica
        answers = {
            verb: json.loads(await bus.request(f"$SRV.{verb}.plexus-replica.{replica}", b"{}", timeout_s=5.0))
            for verb in ("PING", "INFO", "STATS")
        }
        for verb, answer in answers.items():
            assert answer["type"] == f"io.nats.micro.v1.{verb.lower()}_response" and answer["id"] == replica
            assert answer["metadata"] == {"model": MODEL, "worker": "w1"}
        assert answers["INFO"]["description"]
        assert answers["INFO"]["endpoints"][0]["subject"] == names.replica_rpc(replica)
        assert answers["STATS"]["endpoints"][0]["data"]["finished"] == 1
