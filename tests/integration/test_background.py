"""Responses in the background when things go wrong: gateways that die or are only slow, records that go away."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from gateway.dialects.openai_responses_answer import Stream
from gateway.responses import background as backgrounds
from gateway.responses.events import EventLog, Run
from gateway.responses.recorder import Recorder
from gateway.responses.store import Store, Stored, Superseded
from gateway.responses.work import Work
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway that keeps streams alive each 50 ms."""
    await put_model(bus)
    async with running_gateway(broker, keepalive_s=0.05) as gateway:
        yield gateway


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """A replica of its model."""
    replica = await FakeReplica.start(broker, MODEL)
    yield replica
    await replica.close()


async def start(gateway: Running, **fields: Any) -> str:
    """The id of a response in the background."""
    body = {"model": MODEL, "input": "hi", "background": True, **fields}
    return str((await gateway.http.post("/v1/responses", json=body)).json()["id"])


async def begin_stream(gateway: Running, **fields: Any) -> str:
    """The id of one that streams; whoever began it has left."""
    body = {"model": MODEL, "input": "hi", "background": True, "stream": True, **fields}
    async with gateway.http.stream("POST", "/v1/responses", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                return str(orjson.loads(line.removeprefix("data: "))["response"]["id"])
    raise AssertionError("there was no event")


async def events_of(gateway: Running, identifier: str, after: int = -1) -> list[dict[str, Any]]:
    """All events of a response, to its last."""
    query = "stream=true" if after < 0 else f"stream=true&starting_after={after}"
    answer = await gateway.http.get(f"/v1/responses/{identifier}?{query}")
    assert answer.status_code == 200, answer.text
    return [orjson.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


async def fetch(gateway: Running, identifier: str) -> dict[str, Any]:
    answer = await gateway.http.get(f"/v1/responses/{identifier}")
    return {"status": answer.status_code} if answer.status_code != 200 else dict(answer.json())


async def has_status(gateway: Running, identifier: str, status: str) -> bool:
    return bool((await fetch(gateway, identifier))["status"] == status)


# --- gateways that die -----------------------------------------------------------------------------------------------


async def orphan(bus: Bus) -> str:
    """A response whose gateway died while it streamed: two runs of events, and no last one."""
    identifier = f"resp_{names.new_id()}"
    response = {"id": identifier, "object": "response", "status": "in_progress", "output": [], "error": None}
    await Store(bus).put(Stored(response=response, gateway="killed", has_events=True))
    for number in range(2):
        frames = "".join(
            f'event: x\ndata: {{"type":"x","sequence_number":{one}}}\n\n' for one in (2 * number, 2 * number + 1)
        )
        await EventLog(bus).append(identifier, Run(2 * number, frames, False, number))
    return identifier


async def test_the_stream_of_a_gateway_that_died_ends_with_its_failure(gateway: Running, bus: Bus) -> None:
    identifier = await orphan(bus)
    events = await events_of(gateway, identifier, after=0)
    assert [event["sequence_number"] for event in events] == [1, 2, 3, 4]
    assert events[-1]["type"] == "response.failed"
    assert "gone" in events[-1]["response"]["error"]["message"]
    assert (await fetch(gateway, identifier))["status"] == "failed"
    assert await events_of(gateway, identifier, after=4) == []


async def test_gateways_that_find_it_together_agree_on_its_end(
    gateway: Running, broker: EmbeddedBroker, bus: Bus
) -> None:
    async with running_gateway(broker) as other:
        for _ in range(5):
            identifier = await orphan(bus)
            asked = (events_of(gateway, identifier), events_of(other, identifier), fetch(other, identifier))
            first, second, fetched = await asyncio.gather(*asked)
            assert first == second == await events_of(gateway, identifier)
            assert first[-1]["response"] == fetched == await fetch(gateway, identifier)


async def test_the_last_event_comes_when_only_the_record_was_written(gateway: Running, bus: Bus) -> None:
    identifier = await orphan(bus)
    record = await Store(bus).require(identifier)
    record.response["status"] = "completed"
    await Store(bus).put(record)
    assert [event["type"] for event in await events_of(gateway, identifier)][-2:] == ["x", "response.completed"]


async def test_a_gateway_that_was_given_up_writes_no_more(gateway: Running, replica: FakeReplica, bus: Bus) -> None:
    replica.go(1)
    identifier = await begin_stream(gateway, max_output_tokens=30)
    await eventually(lambda: has_status(gateway, identifier, "in_progress"))
    # Another gateway, which could not hear this one, has ended it.
    record = await Store(bus).require(identifier)
    record.response |= {"status": "failed", "error": {"code": "server_error", "message": "gone"}}
    record.gateway = ""
    await Store(bus).put(record, is_guarded=True)
    events = EventLog(bus)
    tail = await events.tail(identifier)
    assert tail is not None
    await events.append(identifier, Run(tail.last + 1, 'data: {"type":"end"}\n\n', True, tail.number + 1))
    replica.go()
    job = identifier.removeprefix("resp_")
    await eventually(lambda: (job, 1) in replica.cancelled or job in replica.finished)
    await eventually(lambda: _num_running(gateway, 0))
    assert (await fetch(gateway, identifier))["error"]["message"] == "gone"
    assert (await events_of(gateway, identifier))[-1]["type"] == "end"


async def _num_running(gateway: Running, wanted: int) -> bool:
    return await gateway.metric(f'plexus_in_flight{{model="{MODEL}"}}') == wanted


# --- deletions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_is_deleted_stays_deleted_however_slow_its_cancellation(
    gateway: Running, replica: FakeReplica, bus: Bus, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(backgrounds, "CANCEL_S", 0.05)
    released, done = asyncio.Event(), asyncio.Event()
    close: Callable[[Work], Awaitable[None]] = Work._close

    async def slow(work: Work) -> None:
        await released.wait()
        await close(work)
        done.set()

    monkeypatch.setattr(Work, "_close", slow)
    replica.go(1)
    identifier = await (begin_stream if stream else start)(gateway)
    await eventually(lambda: has_status(gateway, identifier, "in_progress"))
    assert (await gateway.http.delete(f"/v1/responses/{identifier}")).json()["deleted"] is True
    assert not done.is_set()
    late = Run(90, "data: late\n\n", False, 90)
    await EventLog(bus).append(identifier, late)  # it was on its way
    released.set()
    await done.wait()
    assert (await fetch(gateway, identifier))["status"] == 404
    runs, _ = await EventLog(bus).read(identifier)
    assert runs == ([] if stream else [late])


async def test_whoever_follows_is_told_of_the_deletion(gateway: Running, replica: FakeReplica) -> None:
    replica.go(1)
    identifier = await begin_stream(gateway)
    following = asyncio.create_task(events_of(gateway, identifier))
    await eventually(lambda: has_status(gateway, identifier, "in_progress"))
    await gateway.http.delete(f"/v1/responses/{identifier}")
    last = (await following)[-1]
    assert (last["type"], last["response"]["status"]) in (
        ("response.incomplete", "cancelled"),  # it saw the end before all was taken away
        ("response.failed", "failed"),
    )


async def test_a_cancellation_that_does_not_arrive_is_no_success(
    gateway: Running, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backgrounds, "CANCEL_S", 0.1)
    monkeypatch.setattr(backgrounds, "ANSWER_S", 0.4)
    identifier = f"resp_{names.new_id()}"
    response = {"id": identifier, "status": "in_progress", "background": True, "output": []}

    async def ignore(message: Any) -> None:
        if not message.data:
            await message.respond(b"")  # it lives, and does nothing

    await bus.subscribe(names.responses_rpc("deaf"), ignore)
    await bus.flush()
    await Store(bus).put(Stored(response=response, gateway="deaf"))
    answer = await gateway.http.post(f"/v1/responses/{identifier}/cancel", timeout=10)
    assert answer.status_code == 503
    assert (await fetch(gateway, identifier))["status"] == "in_progress"


# --- defects ---------------------------------------------------------------------------------------------------------


async def test_a_defect_ends_a_response_as_failed(
    gateway: Running, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(stream: Stream, delta: Any) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Stream, "_delta", broken)
    identifier = await begin_stream(gateway)
    events = await events_of(gateway, identifier)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.failed"
    assert await fetch(gateway, identifier) == events[-1]["response"]
    await eventually(lambda: replica.cancelled)


@pytest.mark.parametrize(("limit", "num_items"), [(6000, 1), (3000, 0)])
async def test_an_answer_that_cannot_be_stored_is_a_failure_that_says_so(
    gateway: Running, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch, limit: int, num_items: int
) -> None:
    noise = base64.b64encode(random.Random(7).randbytes(9000)).decode()  # which packing leaves long
    replica.script = lambda job: [(noise, None, "stop")]
    replica.go(0)
    identifier = await begin_stream(gateway, input=noise[:6000])
    await eventually(lambda: has_status(gateway, identifier, "in_progress"))
    monkeypatch.setattr(Store, "_limit", property(lambda store: limit))
    replica.go()
    events = await events_of(gateway, identifier)
    assert events[-1]["type"] == "response.failed"
    assert "store: false" in events[-1]["response"]["error"]["message"]
    assert await fetch(gateway, identifier) == events[-1]["response"]
    items = (await gateway.http.get(f"/v1/responses/{identifier}/input_items")).json()["data"]
    assert len(items) == num_items  # the conversation is given up where the response alone fits


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_signs_of_life_change_no_numbers(gateway: Running, broker: EmbeddedBroker) -> None:
    body = {"model": MODEL, "input": "hi", "background": True, "stream": True, "max_output_tokens": 2}
    seen: list[dict[str, Any]] = []
    async with gateway.http.stream("POST", "/v1/responses", json=body) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                seen.append(orjson.loads(line[6:]))
            if len(seen) == 4:
                break
        assert [event["sequence_number"] for event in seen] == [0, 1, 1, 1]
        replica = await FakeReplica.start(broker, MODEL)
        seen += [orjson.loads(line[6:]) async for line in lines if line.startswith("data: ")]
        await replica.close()
    kept = await events_of(gateway, seen[0]["response"]["id"])
    numbers = [event["sequence_number"] for event in seen]
    assert numbers == sorted(numbers)
    assert [event["sequence_number"] for event in kept] == list(range(len(kept)))
    assert seen[-1] == kept[-1]


# --- whoever follows ------------------------------------------------------------------------------------------------


async def test_a_number_beyond_the_end_gives_the_end(gateway: Running, replica: FakeReplica) -> None:
    replica.go(1)
    identifier = await begin_stream(gateway, max_output_tokens=3)
    url = f"/v1/responses/{identifier}?stream=true&starting_after=999999"
    seen: list[dict[str, Any]] = []
    async with gateway.http.stream("GET", url) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                seen.append(orjson.loads(line[6:]))
                replica.go()
    assert [event["type"] for event in seen[:1] + seen[-1:]] == ["response.in_progress", "response.incomplete"]
    whole = await events_of(gateway, identifier)
    assert seen[-1] == whole[-1]
    assert all(event["sequence_number"] < len(whole) for event in seen)
    assert await events_of(gateway, identifier, after=999_999) == whole[-1:]
    assert await events_of(gateway, identifier, after=len(whole) - 1) == []


async def test_last_events_that_are_slow_to_be_kept_are_waited_for(
    gateway: Running, broker: EmbeddedBroker, bus: Bus, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, get = EventLog.append, Store.get
    looks: dict[Store, int] = {}  # by followers, at a record that is final, while its last events are not there
    held, released = asyncio.Event(), asyncio.Event()

    async def look(store: Store, identifier: str) -> Stored | None:
        found = await get(store, identifier)
        if found is not None and found.response["status"] == "incomplete":
            looks[store] = looks.get(store, 0) + 1
        return found

    async def slow(events: EventLog, response: str, run: Run) -> None:
        if run.is_last and "response.output_item.done" in run.frames:
            held.set()
            await released.wait()
        await append(events, response, run)

    monkeypatch.setattr(Store, "get", look)
    monkeypatch.setattr(EventLog, "append", slow)
    replica.go(0)
    async with running_gateway(broker, keepalive_s=0.05) as other:
        body = {"model": MODEL, "input": "hi", "background": True, "stream": True, "max_output_tokens": 1}
        async with gateway.http.stream("POST", "/v1/responses", json=body) as answer:
            lines = answer.aiter_lines()
            first = await _next_event(lines)
            identifier = first["response"]["id"]
            following = asyncio.create_task(events_of(other, identifier))
            replica.go()
            await held.wait()

            async def is_looked_at() -> bool:
                await bus.publish(names.response_moved(identifier), b"")  # in vain
                return len(looks) == 2 and min(looks.values()) > 2

            await eventually(is_looked_at)
            released.set()
            seen = [first, *[orjson.loads(line[6:]) async for line in lines if line.startswith("data: ")]]
        for events in (seen, await following, await events_of(gateway, identifier)):
            kinds = [event["type"].removeprefix("response.") for event in events]
            assert kinds[-2:] == ["output_item.done", "incomplete"]


async def _next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    async for line in lines:
        if line.startswith("data: "):
            return dict(orjson.loads(line[6:]))
    raise AssertionError("the stream ended")


async def test_words_of_a_query_that_have_no_effect_are_told(gateway: Running, replica: FakeReplica) -> None:
    identifier = await start(gateway, max_output_tokens=1)
    await eventually(lambda: has_status(gateway, identifier, "incomplete"))
    url = f"/v1/responses/{identifier}"
    for answer in (
        await gateway.http.get(f"{url}?zz=1"),
        await gateway.http.get(f"{url}/input_items?limit=1&order=asc&zz=1"),
        await gateway.http.post(f"{url}/cancel?zz=1"),
        await gateway.http.delete(f"{url}?zz=1"),
    ):
        assert (answer.status_code, answer.headers["x-plexus-ignored"]) == (200, "zz")


# --- what is kept ----------------------------------------------------------------------------------------------------


def frame(number: int) -> bytes:
    return b'data: {"n":%d}\n\n' % number


async def recorded(bus: Bus, max_bytes: int) -> tuple[EventLog, str, list[bytes]]:
    """What is kept of ten events and a last one, within a bound."""
    events, identifier = EventLog(bus), f"resp_{names.new_id()}"
    recorder = Recorder(events, identifier, max_bytes)
    running = asyncio.create_task(recorder.run())
    for number in range(10):
        recorder.add(number, frame(number))
        await asyncio.sleep(0)
    await recorder.finish(10, frame(10))
    await running
    runs, _ = await events.read(identifier)
    assert [run.number for run in runs] == list(range(len(runs)))
    assert [run.is_last for run in runs] == [*[False] * (len(runs) - 1), True]
    assert runs[-1].last == 10
    return events, identifier, [run.after(-1) for run in runs]


async def test_all_events_are_kept_within_the_bound_and_the_last_beyond_it(bus: Bus) -> None:
    _, _, kept = await recorded(bus, 1 << 20)
    assert b"".join(kept) == b"".join(frame(number) for number in range(11))
    _, _, kept = await recorded(bus, 3 * len(frame(0)))
    assert b"".join(kept) == b"".join(frame(number) for number in (0, 1, 2, 10))
    _, _, kept = await recorded(bus, 0)
    assert b"".join(kept) == frame(10)


async def test_a_run_is_written_once_and_forgotten_whole(bus: Bus) -> None:
    events, identifier, _ = await recorded(bus, 1 << 20)
    again = Run(0, "data: other\n\n", False, 0)
    with pytest.raises(Superseded):
        await events.append(identifier, again)
    await events.forget(identifier)
    assert await events.tail(identifier) is None


def test_a_run_knows_its_events() -> None:
    run = Run(5, "".join(frame(number).decode() for number in (5, 6, 7)))
    assert run.last == 7
    assert run.after(4) == run.after(-1) == frame(5) + frame(6) + frame(7)
    assert run.after(5) == frame(6) + frame(7)
    assert run.after(7) == run.after(99) == b""
