"""A model that cannot be had from its hub, on a worker on which others are to be loaded meanwhile."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import IntentRecord, ModelRecord
from shared.settings import WorkerSettings
from tests.support.hub import Hub, running_hub
from tests.support.running_gateway import running_gateway
from tests.support.synthetic import synthetic_model, write_synthetic
from worker.agent.agent import Agent

MB = 1 << 20


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        yield hub


async def test_it_holds_nobody_back(broker: EmbeddedBroker, bus: Bus, hub: Hub, tmp_path: Path) -> None:
    plan = Bucket(bus, names.PLAN)
    light = synthetic_model("light", write_synthetic(tmp_path / "model"))
    for record in (light, ModelRecord(id="lost", source="org/name")):
        await plan.put(names.model_key(record.id), encode(record))
    settings = WorkerSettings(
        name="w1",
        state_dir=tmp_path / "state",
        bus=broker.bus_settings("worker"),
        memory_bytes=700 * MB,
        device="cpu",
        cores=2,
        standby=False,
    )
    agent = Agent(settings, "w1")
    task = asyncio.create_task(agent.run())
    try:
        async with running_gateway(broker) as gateway, Fleet(bus) as fleet:
            wanted = IntentRecord(model="lost", want="loaded", at_s=time.time())
            await plan.put(names.intent_key("lost"), encode(wanted))
            await fleet.wait_for(lambda fleet: "w1" in fleet.workers and fleet.workers["w1"].failures, 60)
            assert "org/name" in fleet.workers["w1"].failures[0].reason
            body = gateway.chat(max_tokens=2) | {"model": "light"}
            assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200
            places = {one.model.id for one in fleet.wants["w1"].models}
            assert places == {"light", "lost"}  # it is tried on
    finally:
        agent.stop()
        await asyncio.gather(task, return_exceptions=True)
