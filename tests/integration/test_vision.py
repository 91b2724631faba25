"""A front and its rank with a real model that takes images: from the job in the queue to the tokens."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Count, Counted, Done, Failed, Prompt, encode
from shared.records import ModelRecord
from tests.support.eventually import eventually
from tests.support.front import MODEL, Harness, running
from tests.support.owner import Owner
from tests.support.tiny import make_checkpoint
from tests.support.vision import generate, image_part, make_vision_checkpoint, picture, user
from worker.counter.counter import Counter
from worker.front.rank_link import RANK
from worker.text.model_text import ModelText

LOAD_S = 60.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_checkpoint(tmp_path_factory.mktemp("seeing"), "qwen2_vl")


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return await Owner(bus, MODEL).start()


@pytest.fixture
async def front(broker: EmbeddedBroker, model_dir: Path) -> AsyncIterator[Harness]:
    async with running(broker, model_dir, rank=RANK) as harness:
        await eventually(lambda: harness.statuses and harness.status.state in ("ready", "failed"), LOAD_S)
        assert harness.status.state == "ready", harness.status.reason
        yield harness


def job(owner: Owner, *messages: dict[str, Any], max_tokens: int = 10, **fields: Any) -> Any:
    made = owner.job(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **fields)
    return msgspec.structs.replace(made, prompt=Prompt(messages=list(messages)))


async def refusal(owner: Owner, *messages: dict[str, Any], **fields: Any) -> Failed:
    failed = await owner.finished(await owner.submit(job(owner, *messages, **fields)))
    assert isinstance(failed, Failed)
    return failed


async def test_a_front_with_its_rank(front: Harness, owner: Owner, model_dir: Path) -> None:
    """One start for all that needs a loaded model."""
    await images_and_text_side_by_side(front, owner, model_dir)
    await what_cannot_be_taken_is_refused_before_it_is_accepted(owner)


async def images_and_text_side_by_side(front: Harness, owner: Owner, model_dir: Path) -> None:
    assert front.status.capabilities["vision"]
    one = [user("What is ", picture(1), "this?")]
    two = [user(picture(1), "and", picture(2, 64, 20)), {"role": "assistant", "content": "Yes."}, user("Why?")]
    turned = [user(picture(3, 30, 50, "JPEG"), "?")]
    text = [{"role": "user", "content": "The river"}]
    conversations = [one, two, turned, text, one]
    streams = [await owner.submit(job(owner, *messages)) for messages in conversations]
    for messages, stream in zip(conversations, streams, strict=True):
        assert isinstance(await owner.finished(stream), Done)
        assert stream.ids[0] == generate(model_dir, messages, 10)


async def what_cannot_be_taken_is_refused_before_it_is_accepted(owner: Owner) -> None:
    owner.streams.clear()
    good = picture(1)
    failed = await refusal(owner, user("see", good, "and", good[:200]))
    assert (failed.kind, failed.param) == ("invalid_request", "messages[0].content[3]")
    assert "cut short" in failed.message
    large = picture(7, 48, 32)
    failed = await refusal(owner, *[user("see", large)] * 60)
    assert (failed.kind, failed.limit) == ("context_length_exceeded", 1024)
    assert failed.tokens > 60 * 24
    assert not any(stream.accepted for stream in owner.streams.values())


async def test_a_model_of_text_refuses_an_image(broker: EmbeddedBroker, owner: Owner, tmp_path: Path) -> None:
    async with running(broker, make_checkpoint(tmp_path)) as harness:
        await harness.until(lambda status: status.state == "ready")
        assert harness.status.capabilities["vision"] is False
        failed = await refusal(owner, user("see", picture(1)))
    assert (failed.kind, failed.param) == ("invalid_request", "messages[0].content[1]")
    assert "takes no images" in failed.message and MODEL in failed.message


async def test_counting_counts_images(model_dir: Path) -> None:
    messages = [user("What is ", picture(1), "this?")]
    counter = Counter()
    model = ModelRecord(id=MODEL, source=str(model_dir))
    answer = await asyncio.to_thread(counter.answer, encode(Count(model=model, prompt=Prompt(messages=messages))))
    counted = msgspec.json.decode(answer, type=Counted)
    reading = ModelText.load(model_dir).read(Prompt(messages=messages))
    assert counted.tokens == len(reading.ids) > 15
    broken = [{"role": "user", "content": [image_part(b"GIF89a")]}]
    answer = await asyncio.to_thread(counter.answer, encode(Count(model=model, prompt=Prompt(messages=broken))))
    counted = msgspec.json.decode(answer, type=Counted)
    assert (counted.problem, counted.param) == ("invalid_request", "messages[0].content[0]")
