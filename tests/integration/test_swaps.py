"""More models than fit, asked for all at once: a real gateway, agent, fronts and ranks, and no failed request."""

import asyncio
import time
from pathlib import Path

import pytest

from gateway.cli import events
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import ModelRecord
from shared.settings import EvictionSettings, PlacementSettings, WorkerSettings
from tests.support.running_gateway import running_gateway
from tests.support.synthetic import write_synthetic
from worker.agent.agent import Agent

MODELS = ["swap/a", "swap/b", "swap/c"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as far as the synthetic back end reads it."""
    return write_synthetic(tmp_path_factory.mktemp("model"))


async def test_three_models_take_turns_in_the_room_of_two(
    broker: EmbeddedBroker, bus: Bus, model_dir: Path, tmp_path: Path
) -> None:
    """A synthetic replica takes 256 MB; the worker has 600."""
    plan = Bucket(bus, names.PLAN)
    for model in MODELS:
        record = ModelRecord(id=model, source=str(model_dir), backend="synthetic", options={"tokens_per_s": 50})
        await plan.put(names.model_key(model), encode(record))
    settings = WorkerSettings(
        name="w1", state_dir=tmp_path, bus=broker.bus_settings("worker"), memory_bytes=600 << 20, device="cpu", cores=2
    )
    agent = Agent(settings, "w1")
    task = asyncio.create_task(agent.run())
    most = 0

    def look(fleet: Fleet) -> None:
        nonlocal most
        held = sum(one.reserved_bytes for one in fleet.replicas.values())
        most = max(most, held)

    try:
        async with (
            Fleet(bus) as fleet,
            running_gateway(
                broker,
                placement=PlacementSettings(starvation_bound_s=3.0),
                eviction=EvictionSettings(min_residency_s=0.5),
            ) as gateway,
        ):
            fleet.on_change(lambda key, record: look(fleet))
            asked = [gateway.ask(model=model, max_tokens=10) for _ in range(4) for model in MODELS]
            answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [200] * 12, [answer.text for answer in answers][-1]
            again = await asyncio.gather(*(gateway.ask(model=model, max_tokens=10) for model in reversed(MODELS)))
            assert [answer.status_code for answer in again] == [200] * 3
            assert 0 < most <= 600 << 20
            assert not fleet.workers["w1"].failures
        kinds = {event.kind for event in await events.read(bus, time.time() - 120)}
        assert kinds & {"yielding", "unloaded"} and kinds >= {"assigned", "ready", "gone", "waiting"}
    finally:
        agent.stop()
        await asyncio.gather(task, return_exceptions=True)
