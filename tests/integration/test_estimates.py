"""Estimates over the bus: from a directory, and from a hub without a weight being fetched."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Estimate, Estimated, encode
from shared.records import ModelRecord
from shared.settings import WorkerSettings
from tests.support.hub import Hub, running_hub
from tests.support.tiny import make_checkpoint
from worker.agent.estimates import Estimates


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), shards=3)


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repositories["acme/tiny"] = tiny
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
async def ask(broker: EmbeddedBroker, bus: Bus, tmp_path: Path) -> AsyncIterator[object]:
    worker = await Bus.connect(broker.bus_settings("worker"), kind="worker", ident="w1")
    settings = WorkerSettings(state_dir=tmp_path / "state", slots=4, prefill_tokens=64)

    async def ask(model: ModelRecord) -> Estimated:
        answer = await bus.request(names.ESTIMATE, encode(Estimate(model)), timeout_s=30)
        return msgspec.json.decode(answer, type=Estimated)

    async with Estimates(worker, "w1", settings):
        await worker.api(f"STREAM.INFO.{names.bucket_stream(names.FLEET)}", {})  # the server has the subscription now
        yield ask
    await worker.close()


def stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


async def test_a_directory(ask, tiny: Path) -> None:
    found = await ask(ModelRecord(id="tiny", source=str(tiny)))
    assert not found.error
    assert 0 < stored_bytes(tiny) - found.weights_bytes < 20_000  # the headers
    assert found.kv_bytes_per_token == 3 * 2 * 2 * 16 * 4
    assert found.fixed_bytes < found.minimum_bytes < found.wanted_bytes
    half = await ask(ModelRecord(id="tiny", source=str(tiny), dtype="bfloat16"))
    assert half.weights_bytes * 2 == found.weights_bytes
    small = await ask(ModelRecord(id="tiny", source=str(tiny), quantization="int8"))
    assert small.weights_bytes < half.weights_bytes


async def test_a_repository_that_is_not_here(ask, hub: Hub, tiny: Path) -> None:
    local = await ask(ModelRecord(id="tiny", source=str(tiny)))
    remote = await ask(ModelRecord(id="tiny", source="acme/tiny"))
    assert remote == local
    assert all(sent.asked_range for sent in hub.sent if sent.file.endswith(".safetensors"))
    asked = len(hub.requests)
    assert await ask(ModelRecord(id="tiny", source="acme/tiny")) == remote
    assert len(hub.requests) == asked  # the second time from memory


async def test_what_cannot_be_told_says_why(ask, hub: Hub, tmp_path: Path) -> None:
    assert "no directory" in (await ask(ModelRecord(id="a", source=str(tmp_path / "none")))).error
    assert "acme/none" in (await ask(ModelRecord(id="b", source="acme/none"))).error
    assert (await ask(ModelRecord(id="c", source="not a name/at all"))).error
