"""Streams through a real gateway: frames, keep-alives, cancellation, confirmation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.kv import Bucket
from shared.messages import Delta, Done, Failed, Timings, Usage, Working, encode
from shared.records import ReplicaRecord
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica, text_of
from tests.support.running_gateway import MODEL, EventStream, Running, put_model, running_gateway, text_in


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway that holds headers back for a second and keeps streams alive each 50 ms."""
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=1.0, keepalive_s=0.05) as gateway:
        yield gateway


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """A replica of the gateway's model."""
    replica = await FakeReplica.start(broker, MODEL)
    yield replica
    await replica.close()


@asynccontextmanager
async def streaming(gateway: Running, **fields: object) -> AsyncIterator[EventStream]:
    async with gateway.http.stream("POST", "/v1/chat/completions", json=gateway.chat(stream=True, **fields)) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield EventStream(answer)


async def num_jobs(bus: Bus) -> int:
    return int((await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"])


async def test_a_stream_from_role_to_done(gateway: Running, replica: FakeReplica) -> None:
    async with streaming(gateway, max_tokens=5, stream_options={"include_usage": True}) as stream:
        events = await stream.rest()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_in(events) == text_of(0, 5)
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["usage"]["completion_tokens"] == 5
    assert events[-2]["timings"]["decode_s"] == 0.3
    assert events[-1] == "[DONE]"
    assert {event["system_fingerprint"] for event in events[:-1]} == {"fake-fingerprint"}


async def test_jobs_bear_the_share_of_their_key_and_never_the_key(gateway: Running, replica: FakeReplica) -> None:
    for headers in ({"authorization": "Bearer sk-a"}, {"x-api-key": "sk-a"}, {"authorization": "Bearer sk-b"}, {}):
        body = gateway.chat(max_tokens=1)
        assert (await gateway.http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
    body = {"model": MODEL, "prompt": ["one", "two"], "max_tokens": 1}
    answer = await gateway.http.post("/v1/completions", json=body, headers={"x-api-key": "sk-b"})
    assert answer.status_code == 200
    first, again, other, none, *pair = [job.share for job in replica.received]
    assert first == again != other
    assert pair == [other, other]
    assert (bool(first), bool(other), none) == (True, True, "")
    assert not any(b"sk-" in encode(job) for job in replica.received)


async def test_many_streams_at_once_do_not_mix(gateway: Running, replica: FakeReplica) -> None:
    async def one(number: int) -> tuple[str, str]:
        async with streaming(gateway, max_tokens=number, n=2) as stream:
            events = await stream.rest()
        return text_in(events, 0), text_in(events, 1)

    texts = await asyncio.gather(*(one(number) for number in range(1, 31)))
    assert texts == [(text_of(0, number), text_of(0, number)) for number in range(1, 31)]


async def test_a_finished_job_is_confirmed_and_leaves_the_queue(
    gateway: Running, replica: FakeReplica, bus: Bus
) -> None:
    await gateway.ask(max_tokens=2)
    await eventually(lambda: replica.confirmed == [(replica.received[0].id, 1)])
    await eventually(lambda: _is_empty(bus))
    assert replica.cancelled == []


async def _is_empty(bus: Bus) -> bool:
    return await num_jobs(bus) == 0


async def test_a_summary_said_again_is_confirmed_again(gateway: Running, replica: FakeReplica) -> None:
    await gateway.ask(max_tokens=2)
    await eventually(lambda: len(replica.confirmed) == 1)
    job = replica.received[0]
    await replica.say(job.reply, [Done(job.id, 1, Usage(), Timings())])
    await eventually(lambda: len(replica.confirmed) == 2)


async def test_a_waiting_stream_shows_signs_of_life_and_its_place(gateway: Running, broker: EmbeddedBroker) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(streaming(gateway, max_tokens=3))
        second = await stack.enter_async_context(streaming(gateway, max_tokens=3))
        reading = [asyncio.create_task(stream.next()) for stream in (first, second)]
        await eventually(lambda: any(one.startswith(": plexus state=cold waiting=0") for one in first.comments))
        await eventually(lambda: any(one.startswith(": plexus state=cold waiting=1") for one in second.comments))
        assert first.events == []
        replica = await FakeReplica.start(broker, MODEL)
        stack.push_async_callback(replica.close)
        roles = [(await event)["choices"][0]["delta"]["role"] for event in reading]
        assert roles == ["assistant", "assistant"]
        assert text_in(await first.rest()) == text_in(await second.rest()) == text_of(0, 3)


WAITING = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/v1/responses": {"input": "hi"},
}


@pytest.mark.parametrize("path", WAITING)
async def test_a_waiting_stream_says_why(gateway: Running, broker: EmbeddedBroker, bus: Bus, path: str) -> None:
    body = {"model": MODEL, "stream": True} | WAITING[path]
    comments: list[str] = []

    async def read(lines: AsyncIterator[str]) -> None:
        async for line in lines:
            comments.append(line)  # noqa: PERF401  (it is looked at while it grows)

    def told(text: str) -> bool:
        return any(one.endswith(f" reason={text}") for one in comments)

    async with gateway.http.stream("POST", path, json=body) as answer:
        reading = asyncio.create_task(read(answer.aiter_lines()))
        await eventually(lambda: told("there are no workers"))
        loading = ReplicaRecord(
            id="r1", model=MODEL, worker="w1", state="loading", stage="read", done_bytes=43, total_bytes=100
        )
        key = names.replica_key("r1")
        await Bucket(bus, names.FLEET).put(key, encode(loading), ttl_s=600)
        await eventually(lambda: told("loading on w1: read 43 %"))
        loading.done_bytes = 99
        await Bucket(bus, names.FLEET).put(key, encode(loading), ttl_s=600)
        await eventually(lambda: told("loading on w1: read 99 %"))
        await Bucket(bus, names.FLEET).delete(key)
        replica = await FakeReplica.start(broker, MODEL)
        await reading
        await replica.close()


async def test_a_long_prefill_is_shown(gateway: Running, replica: FakeReplica) -> None:
    replica.go(0)
    async with streaming(gateway, max_tokens=3) as stream:
        job = (await eventually(lambda: replica.received))[0]
        reading = asyncio.create_task(stream.rest())
        await replica.say(job.reply, [Working(job.id, 1, "prefill", 1, 2)])
        await eventually(lambda: ": plexus state=prefill" in stream.comments)
        replica.go()
        assert text_in(await reading) == text_of(0, 3)


async def test_headers_are_held_until_the_job_is_accepted(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=20) as gateway:
        request = asyncio.create_task(gateway.ask(stream=True, max_tokens=1))
        done, _ = await asyncio.wait([request], timeout=0.3)
        assert not done
        replica = await FakeReplica.start(broker, MODEL, failure=("invalid_request", "no such thing", "messages"))
        assert (await request).status_code == 400
        await replica.close()


async def test_the_headers_of_a_waiting_stream_say_why(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=1.5) as gateway, streaming(gateway) as stream:
        assert stream.response.headers["x-plexus-state"] == "cold"
        assert stream.response.headers["x-plexus-position"] == "1"
        assert stream.response.headers["x-plexus-reason"] == "there are no workers"


async def test_headers_are_held_no_longer_than_they_may(gateway: Running, broker: EmbeddedBroker) -> None:
    async with streaming(gateway) as stream:
        replica = await FakeReplica.start(broker, MODEL, failure=("invalid_request", "too late for a 400", "messages"))
        events = await stream.rest()
        assert [event["error"]["message"] for event in events] == ["too late for a 400"]
        await replica.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_cancels_its_job(
    gateway: Running, replica: FakeReplica, bus: Bus, stream: bool
) -> None:
    replica.go(2)
    request = asyncio.create_task(gateway.ask(stream=stream, max_tokens=50))
    job = (await eventually(lambda: replica.received))[0]
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await eventually(lambda: (job.id, 1) in replica.cancelled)
    await eventually(lambda: _is_empty(bus))
    label = f'plexus_requests_total{{model="{MODEL}",outcome="cancelled"'  # whether it was accepted yet or not
    await eventually(lambda: _equals(gateway, label, 1))
    assert await gateway.metric(f'plexus_in_flight{{model="{MODEL}"}}') == 0


async def _equals(gateway: Running, metric: str, value: float) -> bool:
    return await gateway.metric(metric) == value


async def test_a_client_that_leaves_the_queue_takes_its_job_along(gateway: Running, bus: Bus) -> None:
    request = asyncio.create_task(gateway.ask())
    await eventually(lambda: _has_jobs(bus))
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await eventually(lambda: _is_empty(bus))


async def _has_jobs(bus: Bus) -> bool:
    return await num_jobs(bus) > 0


async def test_a_client_that_leaves_after_the_end_is_a_success(gateway: Running, replica: FakeReplica) -> None:
    async with streaming(gateway, max_tokens=2) as stream:
        while await stream.next() != "[DONE]":
            pass
        await stream.response.aclose()
    label = f'plexus_requests_total{{model="{MODEL}",outcome="ok",worker="w1"}}'
    await eventually(lambda: _equals(gateway, label, 1))
    assert replica.cancelled == []


async def test_a_client_that_does_not_read_loses_its_job(
    broker: EmbeddedBroker, bus: Bus, replica: FakeReplica
) -> None:
    replica.pace_s = 0
    async with running_gateway(broker) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = b'{"model":"%s","messages":[{"role":"user","content":"x"}],"stream":true,"n":16,"max_tokens":1000000}'
        body %= MODEL.encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: replica.cancelled, timeout_s=60)
        await eventually(lambda: _is_empty(bus))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_deadline_ends_a_stream_with_an_error(broker: EmbeddedBroker, bus: Bus, replica: FakeReplica) -> None:
    replica.go(2)
    async with running_gateway(broker, job_deadline_s=1.0) as gateway:
        async with streaming(gateway, max_tokens=50) as stream:
            events = await stream.rest()
        assert text_in(events) == text_of(0, 2)
        assert events[-1]["error"]["code"] == "deadline_exceeded"
        await eventually(lambda: replica.cancelled)
        await eventually(lambda: _is_empty(bus))


async def test_an_error_in_the_middle_is_an_event_and_no_finish(gateway: Running, replica: FakeReplica) -> None:
    replica.go(2)
    async with streaming(gateway, max_tokens=50) as stream:
        await stream.content(2)
        job = replica.received[0]
        await replica.say(job.reply, [Failed(job.id, 1, "engine_error", "device assert")])
        events = await stream.rest()
    assert events[-1]["error"] == {
        "message": "device assert",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])


async def test_a_job_says_all_that_a_replica_needs(gateway: Running, replica: FakeReplica) -> None:
    await gateway.ask(max_tokens=2, temperature=0.5, seed=7, tools=[], chat_template_kwargs={"x": 1})
    job = replica.received[0]
    assert (job.model, job.attempt, job.job_class, job.on_owner_lost) == (MODEL, 1, "interactive", "drop")
    assert (job.reply, job.owner) == (names.delta_subject(gateway.id), names.gateway_rpc(gateway.id))
    assert (job.sampling.seed, job.sampling.temperature, job.sampling.max_tokens) == (7, 0.5, 2)
    assert job.prompt.messages == [{"role": "user", "content": "hi"}]
    assert job.prompt.template == {"x": 1}
    assert 0 < job.published_s < job.deadline_s
    assert job.resume == []


async def test_items_that_arrive_for_nobody_are_cancelled(gateway: Running, replica: FakeReplica) -> None:
    await replica.say(names.delta_subject(gateway.id), [Delta("unknown-job", 3, 0, 0, [1], "x")])
    await eventually(lambda: replica.cancelled == [("unknown-job", 3)])
