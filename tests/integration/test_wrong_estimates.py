"""A model that takes more than it was thought to, on a worker that holds its processes to what they were granted."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.cli import events
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import IntentRecord, ModelRecord, ReplicaRecord
from shared.settings import WorkerSettings
from tests.support.running_gateway import Running, running_gateway
from tests.support.synthetic import synthetic_model, write_synthetic
from worker.agent.agent import Agent

MB = 1 << 20
BALLAST = 300 * MB  # the estimate of a synthetic model is 256 MB, whatever it takes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRecord]:
    path = write_synthetic(tmp_path_factory.mktemp("model"))
    light, heavy = synthetic_model("light", path), synthetic_model("heavy", path)
    heavy.options["ballast_bytes"] = BALLAST
    return {"light": light, "heavy": heavy}


@asynccontextmanager
async def a_worker(broker: EmbeddedBroker, folder: Path, memory_bytes: int) -> AsyncIterator[None]:
    settings = WorkerSettings(
        name="w1",
        state_dir=folder,
        bus=broker.bus_settings("worker"),
        memory_bytes=memory_bytes,
        device="cpu",
        cores=2,
        standby=False,
        enforce_memory=True,
    )
    agent = Agent(settings, "w1")
    task = asyncio.create_task(agent.run())
    try:
        yield
    finally:
        agent.stop()
        await asyncio.gather(task, return_exceptions=True)


async def ask(gateway: Running, model: str) -> int:
    body = gateway.chat(max_tokens=2) | {"model": model}
    return (await gateway.http.post("/v1/chat/completions", json=body)).status_code


def ready(fleet: Fleet, model: str) -> ReplicaRecord | None:
    return next((one for one in fleet.replicas_of(model) if one.state == "ready"), None)


async def test_it_fails_alone_with_its_reason_and_is_given_what_it_takes(
    broker: EmbeddedBroker, bus: Bus, models: dict[str, ModelRecord], tmp_path: Path
) -> None:
    plan = Bucket(bus, names.PLAN)
    for id, record in models.items():
        await plan.put(names.model_key(id), encode(record))
    began = time.time()
    async with a_worker(broker, tmp_path, 700 * MB), running_gateway(broker) as gateway, Fleet(bus) as fleet:
        assert await ask(gateway, "light") == 200
        neighbour = ready(fleet, "light")
        assert neighbour is not None
        # 1. It fails for real, with a typed reason and figures, and its client waits.
        assert await ask(gateway, "heavy") == 200
        failed = [one for one in await events.read(bus, began, "heavy") if one.kind == "failed"]
        kinds = {one.inputs["kind"] for one in failed if "kind" in one.inputs}
        assert kinds == {"underestimated"}
        assert any("ran out of memory" in one.reason for one in failed)
        assert all(one.inputs["needed_bytes"] > one.inputs["had_bytes"] for one in failed if "kind" in one.inputs)
        # 2. Nobody else was taken along.
        assert ready(fleet, "light") == ready(fleet, "light") is not None
        assert ready(fleet, "light").id == neighbour.id  # type: ignore[union-attr]
        assert await ask(gateway, "light") == 200
        # 3. What it took is known, and the next load is right at once.
        replica = ready(fleet, "heavy")
        assert replica is not None and replica.measured_bytes > BALLAST
        await fleet.wait_for(lambda fleet: "heavy" in fleet.measured, 10)
        (measured,) = fleet.measured["heavy"].loads
        assert measured.bytes >= replica.measured_bytes
        await plan.put(names.intent_key("heavy"), encode(IntentRecord(model="heavy", want="unloaded")))
        await fleet.wait_for(lambda fleet: not fleet.replicas_of("heavy"), 10)
        again = time.time()
        await plan.put(names.intent_key("heavy"), encode(IntentRecord(model="heavy", want="loaded")))
        await fleet.wait_for(lambda fleet: ready(fleet, "heavy"), 20)
        assert not [one for one in await events.read(bus, again, "heavy") if one.kind == "failed"]
        given = next(one for one in fleet.wants["w1"].models if one.model.id == "heavy")
        assert given.memory_bytes == measured.bytes


async def test_what_needs_more_than_there_is_becomes_an_error_with_numbers(
    broker: EmbeddedBroker, bus: Bus, models: dict[str, ModelRecord], tmp_path: Path
) -> None:
    await Bucket(bus, names.PLAN).put(names.model_key("heavy"), encode(models["heavy"]))
    async with a_worker(broker, tmp_path, 300 * MB), running_gateway(broker) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=gateway.chat() | {"model": "heavy"})
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["code"] == "capacity"
