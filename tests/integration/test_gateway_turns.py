"""Of one key's jobs few wait in the queue; the others at their gateway, where they may leave and see their place."""

import asyncio
import time

import httpx

from gateway.dispatch import Dispatcher
from gateway.metrics import Metrics
from gateway.request import InferenceRequest
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.settings import GatewaySettings
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, put_model, running_gateway


async def num_in_queue(bus: Bus) -> int:
    return int((await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"])


def has_in_queue(bus: Bus, count: int):  # type: ignore[no-untyped-def]
    async def look() -> bool:
        return await num_in_queue(bus) == count

    return look


async def test_those_that_wait_here_follow_in_order_and_those_that_leave_do_not(
    broker: EmbeddedBroker, bus: Bus
) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=20) as gateway:
        asking: list[asyncio.Task[httpx.Response]] = []
        for number in range(5):
            asking.append(asyncio.create_task(gateway.ask(max_tokens=number + 1)))
            await eventually(has_in_queue(bus, min(2, number + 1)))
        while await gateway.metric("plexus_in_flight") < 5:
            pass
        asked = time.time()
        asking[3].cancel()  # waits at the gateway
        asking[0].cancel()  # waits in the queue
        await eventually(lambda: asking[0].done() and asking[3].done())
        replica = await FakeReplica.start(broker, MODEL)
        try:
            answers = await asyncio.gather(asking[1], asking[2], asking[4])
            await eventually(has_in_queue(bus, 0))
        finally:
            await replica.close()
    assert [one.status_code for one in answers] == [200] * 3
    assert [one.json()["usage"]["completion_tokens"] for one in answers] == [2, 3, 5]
    taken = [job for job in replica.received if job.sampling.max_tokens in (2, 3, 5)]
    assert [job.sampling.max_tokens for job in taken] == [2, 3, 5]
    assert taken[0].held_s == 0.0 < taken[-1].held_s
    assert taken[-1].published_s < asked  # its time in the queue is counted from the request on


async def test_a_stream_that_waits_here_is_told_its_place(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=0.1, keepalive_s=0.2) as gateway:
        others = [asyncio.create_task(gateway.ask()) for _ in range(4)]
        await eventually(has_in_queue(bus, 2))
        body = gateway.chat(stream=True)
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as last:
            lines = last.aiter_lines()
            async with asyncio.timeout(20):
                while "waiting=4" not in await anext(lines):
                    pass
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_a_gateway_that_stops_publishes_nothing_more(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=20) as gateway:
        asking = [asyncio.create_task(gateway.ask()) for _ in range(6)]
        await eventually(has_in_queue(bus, 2))
        gateway.task.cancel()
        answers = await asyncio.gather(*asking)
    assert {one.status_code for one in answers} == {503}
    assert not await num_in_queue(bus)


async def test_jobs_that_end_before_they_are_known_to_wait_leave_nothing(bus: Bus) -> None:
    dispatcher = Dispatcher(bus, GatewaySettings(), "gateway", Metrics())
    await dispatcher.start()
    try:
        await bus.ensure_consumer(MODEL, "interactive")  # from here on a job is on its way as soon as it is submitted
        before = len(bus._waiting)
        for number in range(20):
            flight = dispatcher.submit(InferenceRequest(model=MODEL), f"job{number}")
            if number % 2:
                await asyncio.sleep(0)
            dispatcher.cancel(flight)
        await eventually(lambda: not len(dispatcher._tasks))
        assert await num_in_queue(bus) == 0
        assert len(bus._waiting) == before
    finally:
        await dispatcher.close()
