"""What clients see when replicas die, hang, forget, or when the bus goes away: one unbroken stream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from gateway import supervise
from shared import connection, names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Claim, Claimed, Delta, Done, Failed, Item, Job, Ping, Pong, ResumeChoice, encode
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica, text_of
from tests.support.running_gateway import MODEL, EventStream, Running, put_model, running_gateway, text_in

ALL = 40


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway that knows one model."""
    await put_model(bus)
    async with running_gateway(broker, keepalive_s=0.2) as gateway:
        yield gateway


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """A replica that pauses after ten tokens."""
    replica = await FakeReplica.start(broker, MODEL, worker="first")
    replica.go(10)
    yield replica
    await replica.close()


@asynccontextmanager
async def streaming(gateway: Running, **fields: object) -> AsyncIterator[EventStream]:
    body = gateway.chat(stream=True, max_tokens=ALL, **fields)
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield EventStream(answer)


async def is_queue_empty(bus: Bus) -> bool:
    return int((await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"]) == 0


def ends_well(events: list[object], choice: int = 0) -> bool:
    """Every token once and in order, one finish, the end."""
    finishes = [
        one["finish_reason"]
        for event in events
        if isinstance(event, dict)
        for one in event["choices"]
        if one["index"] == choice and one["finish_reason"]
    ]
    return text_in(events, choice) == text_of(0, ALL) and finishes == ["length"] and events[-1] == "[DONE]"


async def test_a_replica_that_dies_is_replaced_without_repeat_or_gap(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, bus: Bus
) -> None:
    async with streaming(gateway, n=2) as stream:
        await stream.content(20)
        second = await FakeReplica.start(broker, MODEL, worker="second")
        await replica.die()
        events = await stream.rest()
    assert ends_well(events, 0)
    assert ends_well(events, 1)
    job = second.received[0]
    assert (job.id, job.attempt) == (replica.received[0].id, 2)
    assert job.resume == [ResumeChoice(list(range(10)))] * 2
    assert await gateway.metric('plexus_redispatches_total{reason="dead"}') == 1
    await eventually(lambda: is_queue_empty(bus))
    await second.close()


async def test_a_death_is_noticed_by_the_servers_advisory(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "SILENCE_S", 1000.0)  # nothing else can notice it
    monkeypatch.setattr(supervise, "FORGOTTEN_S", 1000.0)
    async with streaming(gateway) as stream:
        await stream.content(10)
        second = await FakeReplica.start(broker, MODEL)
        await replica.die()
        assert ends_well(await stream.rest())
    await second.close()


async def test_a_death_without_an_advisory_is_noticed_by_silence(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "parse_client_name", lambda name: ("", name))  # as on a server that sends none
    async with streaming(gateway) as stream:
        await stream.content(10)
        second = await FakeReplica.start(broker, MODEL)
        await replica.die()
        assert ends_well(await stream.rest())
    assert await gateway.metric('plexus_redispatches_total{reason="dead"}') == 1
    await second.close()


async def test_a_replica_that_hangs_is_replaced(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, bus: Bus
) -> None:
    async with streaming(gateway) as stream:
        await stream.content(10)
        await replica.take_no_more()
        replica.is_answering = False
        second = await FakeReplica.start(broker, MODEL)
        assert ends_well(await stream.rest())
        assert await gateway.metric('plexus_redispatches_total{reason="hung"}') == 1
        # It wakes up and goes on with the old attempt: it is told to stop, and the client hears nothing of it.
        replica.is_answering = True
        replica.go()
        job = replica.received[0]
        await replica.say(job.reply, [Delta(job.id, 1, 0, 10, [10], " zombie")])
        await eventually(lambda: (job.id, 1) in replica.cancelled)
    await eventually(lambda: is_queue_empty(bus))
    await second.close()


async def test_a_front_that_answers_for_a_hung_rank_is_replaced(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    async with streaming(gateway) as stream:
        await stream.content(10)
        await replica.take_no_more()
        second = await FakeReplica.start(broker, MODEL)
        replica.pong = Pong(hung=True)
        assert ends_well(await stream.rest())
    await second.close()


async def test_a_silent_replica_that_answers_pings_keeps_its_job(gateway: Running, replica: FakeReplica) -> None:
    async with streaming(gateway) as stream:
        await stream.content(10)
        reading = asyncio.create_task(stream.rest())
        await eventually(lambda: len(replica.replays) > 0, timeout_s=10)  # silent for so long that it was asked
        replica.go()
        assert ends_well(await reading)
    assert [job.attempt for job in replica.received] == [1]


async def test_a_lost_batch_is_replayed(gateway: Running, replica: FakeReplica) -> None:
    replica.loses = lambda item: isinstance(item, Delta) and item.start in (3, 4)
    replica.go()
    async with streaming(gateway, n=2) as stream:
        events = await stream.rest()
    assert ends_well(events, 0)
    assert ends_well(events, 1)
    assert replica.replays[0].positions == [3, 3]
    assert await gateway.metric("plexus_replays_total") >= 1
    assert [job.attempt for job in replica.received] == [1]


async def test_a_lost_acceptance_does_no_harm(gateway: Running, replica: FakeReplica) -> None:
    replica.loses = lambda item: not isinstance(item, Delta | Done)
    replica.go()
    async with streaming(gateway) as stream:
        assert ends_well(await stream.rest())
    assert stream.events[0]["choices"][0]["delta"]["role"] == "assistant"


async def test_a_lost_end_is_asked_for(gateway: Running, replica: FakeReplica) -> None:
    lost: list[Item] = []

    def loses(item: Item) -> bool:
        if isinstance(item, Done) or (isinstance(item, Delta) and item.finish):
            lost.append(item)
            return True
        return False

    replica.loses = loses
    replica.go()
    async with streaming(gateway) as stream:
        assert ends_well(await stream.rest())
    assert len(lost) == 2


async def test_a_replica_that_forgot_a_job_loses_it(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    async with streaming(gateway) as stream:
        await stream.content(10)
        await replica.take_no_more()
        second = await FakeReplica.start(broker, MODEL)
        replica.runs.clear()
        assert ends_well(await stream.rest())
        assert second.received[0].attempt == 2
    await second.close()


async def test_a_job_that_was_taken_without_a_word_goes_to_another(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, bus: Bus
) -> None:
    replica.ignores = lambda job: True
    async with streaming(gateway) as stream:
        await eventually(lambda: replica.received)
        await replica.take_no_more()
        second = await FakeReplica.start(broker, MODEL)
        assert ends_well(await stream.rest())
        assert second.received[0].attempt == 2
        assert await gateway.metric('plexus_redispatches_total{reason="unanswered"}') == 1
    await eventually(lambda: is_queue_empty(bus))
    await second.close()


async def test_a_job_that_only_waits_is_not_published_again(gateway: Running, broker: EmbeddedBroker) -> None:
    asking = asyncio.create_task(gateway.ask(max_tokens=2))
    done, _ = await asyncio.wait([asking], timeout=2.5)  # several looks at the queue
    assert not done
    replica = await FakeReplica.start(broker, MODEL)
    assert (await asking).status_code == 200
    assert [job.attempt for job in replica.received] == [1]
    await replica.close()


async def test_a_job_that_the_queue_lost_is_published_again(gateway: Running, broker: EmbeddedBroker, bus: Bus) -> None:
    asking = asyncio.create_task(gateway.ask(max_tokens=2))
    await eventually(lambda: _has_jobs(bus))
    await bus.api("STREAM.PURGE.JOBS", {})
    await eventually(lambda: _has_jobs(bus))
    replica = await FakeReplica.start(broker, MODEL)
    assert (await asking).status_code == 200
    assert [job.attempt for job in replica.received] == [2]
    await replica.close()


async def _has_jobs(bus: Bus) -> bool:
    return not await is_queue_empty(bus)


async def test_attempts_end_with_an_error_event(gateway: Running, broker: EmbeddedBroker, bus: Bus) -> None:
    replica = await FakeReplica.start(broker, MODEL, failure=("replica_lost", "the rank died", None))
    response = await gateway.ask()
    assert response.status_code == 503
    assert "after 4 attempts" in response.json()["error"]["message"]
    assert response.headers["retry-after"]
    assert [job.attempt for job in replica.received] == [1, 2, 3, 4]
    await eventually(lambda: is_queue_empty(bus))
    await replica.close()


class _Fragile(FakeReplica):
    """Its rank dies of a job with the word `poison`, and takes every other job along."""

    async def _begin(self, job: Job, ack: str, is_again: bool) -> None:
        if "poison" not in encode(job.prompt).decode():
            await super()._begin(job, ack, is_again)
            return
        await asyncio.sleep(0.2)  # whatever was published again together with it is here by now
        await self._publish(job.reply, [Failed(job.id, job.attempt, "replica_lost", "the rank died")])
        await self.bus.publish(ack, b"+TERM")
        runs, self.runs = self.runs, {}
        for run in runs.values():
            await self._publish(run.job.reply, [Failed(run.job.id, run.attempt, "replica_lost", "the rank died")])
            await self.bus.publish(run.ack, b"+TERM")


async def test_a_job_that_kills_its_rank_ends_and_the_others_survive(
    gateway: Running, broker: EmbeddedBroker, bus: Bus
) -> None:
    replica = await _Fragile.start(broker, MODEL, pace_s=0.05)
    async with streaming(gateway) as first, streaming(gateway) as second:
        await first.content(2)
        await second.content(2)
        poison = asyncio.create_task(gateway.ask(messages=[{"role": "user", "content": "poison"}]))
        assert ends_well(await first.rest())
        assert ends_well(await second.rest())
    response = await poison
    assert response.status_code == 503
    assert "after 4 attempts" in response.json()["error"]["message"]
    await eventually(lambda: is_queue_empty(bus))
    await replica.close()


async def test_a_replica_that_stops_in_order_hands_its_jobs_over(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    async with streaming(gateway) as stream:
        await stream.content(10)
        await replica.take_no_more()
        second = await FakeReplica.start(broker, MODEL)
        job = replica.received[0]
        await replica.say(job.reply, [Failed(job.id, 1, "shutting_down", "bye")])
        assert ends_well(await stream.rest())
    await second.close()


async def test_a_broker_that_restarts_in_the_middle_is_not_seen(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, bus: Bus
) -> None:
    async with streaming(gateway) as stream:
        await stream.content(10)
        broker.kill()
        await eventually(lambda: not replica.bus.is_connected)
        replica.go()  # it goes on without a connection; much of what it says is lost
        await broker.start()
        assert ends_well(await stream.rest())
    assert [job.attempt for job in replica.received] == [1]
    await eventually(lambda: is_queue_empty(bus), timeout_s=15)


async def test_a_replica_that_comes_back_late_after_a_restart_keeps_its_job(
    gateway: Running, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens for it at first, also when it is asked for what was missed: it gets a moment to reconnect."""
    monkeypatch.setattr(connection, "RECONNECT_WAIT_S", 0.8)
    replica = await FakeReplica.start(broker, MODEL)
    replica.go(10)
    async with streaming(gateway) as stream:
        await stream.content(10)
        await broker.stop()
        await broker.start()
        await eventually(lambda: replica.bus.is_connected)
        replica.go()
        assert ends_well(await stream.rest())
    assert await gateway.metric("plexus_redispatches_total{") == 0
    assert len(replica.received) == 1
    await replica.close()


async def test_a_job_waits_through_a_restart_of_the_broker(gateway: Running, broker: EmbeddedBroker, bus: Bus) -> None:
    asking = asyncio.create_task(gateway.ask(max_tokens=2))
    await eventually(lambda: _has_jobs(bus))
    broker.kill()
    await broker.start()
    replica = await FakeReplica.start(broker, MODEL)
    assert (await asking).status_code == 200
    await replica.close()


async def test_a_request_during_an_outage_waits_for_the_bus(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    replica.go()
    broker.kill()
    asking = asyncio.create_task(gateway.ask(max_tokens=2))
    done, _ = await asyncio.wait([asking], timeout=0.3)
    assert not done
    await broker.start()
    assert (await asking).status_code == 200


async def test_a_redelivered_job_is_claimed_before_it_runs(
    gateway: Running, replica: FakeReplica, broker: EmbeddedBroker, bus: Bus
) -> None:
    """The replica works and never says +WPI: after ack_wait the queue gives the job to another, who must ask."""
    second = await FakeReplica.start(broker, MODEL)
    await second.take_no_more()
    async with streaming(gateway) as stream:
        await stream.content(10)
        await replica.take_no_more()
        await second.take()

        async def keep_talking() -> None:
            while True:
                replica.go((replica.limit or 0) + 1)
                await asyncio.sleep(0.3)

        talking = asyncio.create_task(keep_talking())
        reading = asyncio.create_task(stream.rest())
        claimed = await eventually(lambda: second.claims, timeout_s=15)
        assert claimed[0].drop
        talking.cancel()
        replica.go()
        assert ends_well(await reading)
    await second.close()


async def test_a_claim_for_an_unknown_job_is_dropped(gateway: Running, replica: FakeReplica) -> None:
    claim = encode(Claim("never-heard-of", 1, replica.id))
    answer = await replica.bus.request(names.gateway_rpc(gateway.id), claim, timeout_s=5)
    assert msgspec.json.decode(answer, type=Claimed).drop


async def test_a_gateway_answers_pings(gateway: Running, replica: FakeReplica) -> None:
    answer = await replica.bus.request(names.gateway_rpc(gateway.id), encode(Ping()), timeout_s=5)
    assert msgspec.json.decode(answer, type=Pong)
