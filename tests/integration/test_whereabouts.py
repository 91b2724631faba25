"""Whoever asks where a job is gets the answer of the one gateway that knows it."""

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.cli import explain
from gateway.cli.errors import CliError
from gateway.errors import QueueFull
from gateway.flight import Flight
from gateway.whereabouts import MAX_ENDED, Whereabouts
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.errors import BusTimeout
from shared.messages import FindJob, FoundJob, Job, Prompt, encode
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, EventStream, put_model, running_gateway


def flight_of(job: str) -> Flight:
    return Flight(Job(id=job, model="m", reply="r", prompt=Prompt(text="x")), max_attempts=4, deadline=1e12, now=0.0)


async def find(bus: Bus, job: str) -> FoundJob:
    return msgspec.json.decode(await bus.request(names.JOB_FIND, encode(FindJob(job)), timeout_s=0.5), type=FoundJob)


async def test_jobs_that_run_and_jobs_that_ended_are_found(bus: Bus) -> None:
    waiting, other = flight_of("waiting"), flight_of("other")
    waiting.ahead = 3
    clock = time.monotonic
    first: Any = SimpleNamespace(streams=SimpleNamespace(flights={"waiting": waiting}), clock=clock)
    second: Any = SimpleNamespace(streams=SimpleNamespace(flights={"other": other}), clock=clock)
    gateways = [Whereabouts(bus, first, "g1"), Whereabouts(bus, second, "g2")]
    for gateway in gateways:
        await gateway.start()
    try:
        found = await find(bus, "waiting")
        assert (found.gateway, found.state, found.ahead, found.model) == ("g1", "queued", 3, "m")
        assert (await find(bus, "other")).gateway == "g2"
        waiting.fail(QueueFull("m", 7), 1.0)
        first.streams.flights.clear()
        gateways[0].ended(waiting)
        found = await find(bus, "waiting")
        assert (found.state, found.gateway) == ("failed", "g1") and "7 requests already wait" in found.error
        with pytest.raises(BusTimeout):
            await find(bus, "nobody's")
    finally:
        for gateway in gateways:
            await gateway.close()


async def test_a_request_is_explained_by_its_id_while_it_waits_and_afterwards(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    operator = broker.bus_settings("operator")
    async with running_gateway(broker, accept_wait_s=0.2) as gateway:
        body = gateway.chat(stream=True, max_tokens=2)
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            asked = answer.headers["x-request-id"]
            facts = await explain.explain(operator, asked)
            assert (facts["job"]["state"], facts["job"]["gateway"]) == ("queued", gateway.id)
            assert (facts["model"]["id"], facts["model"]["reason"]) == (MODEL, "there are no workers")
            text = explain.as_text(facts)
            assert f"request {asked.removeprefix('req_')} for {MODEL} is queued" in text
            assert "waiting: there are no workers" in text
            replica = await FakeReplica.start(broker, MODEL)
            events = EventStream(answer)
            ident = (await events.next())["id"]
            await events.rest()
        facts = await explain.explain(operator, ident)  # as the answer names it
        assert (facts["job"]["state"], facts["job"]["worker"], facts["job"]["tokens"]) == ("done", "w1", 2)
        with pytest.raises(CliError, match="neither a model of the catalogue"):
            await explain.explain(operator, "req_" + "x" * 22)
        await replica.close()


def test_only_the_latest_of_the_ended_are_kept() -> None:
    dispatcher: Any = SimpleNamespace(clock=time.monotonic)
    gateway = Whereabouts(None, dispatcher, "g")  # type: ignore[arg-type]
    for number in range(MAX_ENDED + 5):
        gateway.ended(flight_of(str(number)))
    assert len(gateway._ended) == MAX_ENDED and "4" not in gateway._ended and "5" in gateway._ended
