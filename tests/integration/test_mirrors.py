"""Models of a mirror: a hub beside the usual one, with an endpoint, a token and a cache of its own."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Count, Counted, Estimate, Estimated, Prompt, encode
from shared.records import ModelRecord
from shared.settings import SourceSettings, WorkerSettings
from tests.support.hub import Hub, running_hub
from tests.support.tiny import make_checkpoint
from worker.agent.counting import Counting
from worker.agent.errors import FetchFailed
from worker.agent.estimates import Estimates
from worker.agent.fetching import fetch
from worker.models.errors import MirrorUnusable

MODEL = ModelRecord(id="tiny", source="lab:acme/tiny")
TOKEN = "hf_of_the_mirror"
USUAL_TOKEN = "hf_of_the_usual_hub"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def mirror(tiny: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repositories["acme/tiny"] = tiny
        hub.token = TOKEN
        yield hub


@pytest.fixture(autouse=True)
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The usual hub has a model of the same name, but none of these files."""
    with running_hub() as hub:
        (tmp_path / "other").mkdir()
        hub.repositories["acme/tiny"] = tmp_path / "other"
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", USUAL_TOKEN)
        yield hub


def known(hub: Hub, **fields: str) -> dict[str, SourceSettings]:
    return {"lab": SourceSettings(**({"endpoint": hub.url, "token": TOKEN} | fields))}  # type: ignore[arg-type]


async def test_it_is_downloaded_from_there_with_its_token(mirror: Hub, usual: Hub, tiny: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = await fetch(MODEL, lambda done, total: told.append((done, total)), mirrors=known(mirror))
    assert (path / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert tmp_path / "hf" / "hub" / "mirrors" / "lab" in path.parents
    assert told[-1][0] == told[-1][1] > 0
    assert usual.requests == []


async def test_the_token_may_be_in_a_file_and_the_cache_elsewhere(mirror: Hub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    mirrors = known(mirror, token="", token_file=str(tmp_path / "token"), cache_dir=str(tmp_path / "cache"))
    assert tmp_path / "cache" in (await fetch(MODEL, lambda *_: None, mirrors=mirrors)).parents
    (tmp_path / "token").unlink()
    with pytest.raises(MirrorUnusable, match=r"token file .* cannot be read .*\[sources\.lab\]"):
        await fetch(MODEL, lambda *_: None, mirrors=mirrors)


async def test_the_token_of_the_usual_hub_is_not_sent_to_a_mirror(mirror: Hub) -> None:
    mirror.token = USUAL_TOKEN  # a mirror that would take it
    with pytest.raises(FetchFailed, match=r"\[sources\.lab\] of this worker's settings"):
        await fetch(MODEL, lambda *_: None, mirrors=known(mirror, token=""))
    mirror.token = ""
    await fetch(MODEL, lambda *_: None, mirrors=known(mirror, token=""))


async def test_a_worker_without_the_mirror_says_so(usual: Hub) -> None:
    with pytest.raises(MirrorUnusable, match=r"define no mirror 'lab' \(defined: none\); add \[sources\.lab\]"):
        await fetch(MODEL, lambda *_: None)
    assert usual.requests == []


@pytest.fixture
async def worker(broker: EmbeddedBroker, mirror: Hub, bus: Bus, tmp_path: Path) -> AsyncIterator[Bus]:
    """An operator's connection beside a worker that counts and estimates."""
    connection = await Bus.connect(broker.bus_settings("worker"), kind="worker", ident="w1")
    settings = WorkerSettings(state_dir=tmp_path / "state", slots=4, prefill_tokens=64, sources=known(mirror))
    async with Estimates(connection, "w1", settings), Counting(connection, "w1", mirrors=settings.sources):
        await connection.api(f"STREAM.INFO.{names.bucket_stream(names.FLEET)}", {})  # its subscriptions are heard
        yield bus
    await connection.close()


async def test_its_size_is_told_without_its_weights(worker: Bus, mirror: Hub, usual: Hub, tiny: Path) -> None:
    async def estimate(source: str) -> Estimated:
        question = encode(Estimate(ModelRecord(id="tiny", source=source)))
        return msgspec.json.decode(await worker.request(names.ESTIMATE, question, timeout_s=30), type=Estimated)

    assert await estimate(MODEL.source) == await estimate(str(tiny))
    assert all(sent.asked_range for sent in mirror.sent if sent.file.endswith(".safetensors"))
    assert usual.requests == []
    assert "no mirror 'elsewhere'" in (await estimate("elsewhere:acme/tiny")).error


async def test_its_tokens_are_counted(worker: Bus, usual: Hub) -> None:
    async def count(source: str) -> Counted:
        question = encode(Count(ModelRecord(id="tiny", source=source), Prompt(text="The river rises.")))
        return msgspec.json.decode(await worker.request(names.COUNT, question, timeout_s=30), type=Counted)

    assert (await count(MODEL.source)).tokens > 0
    assert usual.requests == []
    assert (await count("elsewhere:acme/tiny")).problem == "elsewhere"


def test_the_secret_is_in_no_argument_and_no_text(mirror: Hub) -> None:
    settings = WorkerSettings(sources=known(mirror))
    assert TOKEN not in repr(settings)
    assert TOKEN in json.dumps(settings.sources["lab"].model_dump())
