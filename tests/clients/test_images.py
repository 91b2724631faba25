"""Images by the official SDKs of all three APIs: one neutral part in the queue, refusals that a client can act on."""

import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import openai
import pytest

from shared import names
from shared.bus import Bus
from shared.kv import Bucket
from shared.messages import encode, no_sight
from shared.records import ModelRecord
from tests.clients.strict import strict
from tests.support import pictures
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, Running

LOOK: Any = {"role": "user", "content": "What is it?"}
CHAT: Any = [{"role": "user", "content": [{"type": "text", "text": "What?"}, pictures.chat_part()]}]
BLOCKS: Any = [{"role": "user", "content": [{"type": "text", "text": "What?"}, pictures.block()]}]
INPUT: Any = [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, pictures.input_part()]}]
NEUTRAL = [{"role": "user", "content": [{"type": "text", "text": "What?"}, pictures.neutral()]}]


class Clients:
    """One of each API."""

    def __init__(self, url: str) -> None:
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0)

    async def chat(self, **fields: Any) -> Any:
        return strict(await self.openai.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=1, **fields))

    async def messages(self, **fields: Any) -> Any:
        return strict(await self.anthropic.messages.create(model=MODEL, messages=BLOCKS, max_tokens=1, **fields))

    async def responses(self, **fields: Any) -> Any:
        fields = {"input": INPUT, "max_output_tokens": 1} | fields
        return strict(await self.openai.responses.create(model=MODEL, **fields))


@pytest.fixture
async def clients(gateway: Running) -> AsyncIterator[Clients]:
    clients = Clients(gateway.url)
    yield clients
    await clients.openai.close()
    await clients.anthropic.close()


async def test_an_image_is_one_part_in_the_queue(clients: Clients, replica: FakeReplica) -> None:
    for send in (clients.chat, clients.messages, clients.responses):
        await send()
    jobs = [job.prompt for job in replica.received]
    assert [job.messages for job in jobs] == [NEUTRAL] * 3
    assert len({encode(job.messages) for job in jobs}) == 1  # also in the order of their keys
    assert {job.estimate_tokens for job in replica.received} == {64 + 5}


async def test_images_in_the_results_of_tools(clients: Clients, replica: FakeReplica) -> None:
    call: Any = {"type": "function", "function": {"name": "shot", "arguments": "{}"}, "id": "c"}
    await clients.openai.chat.completions.create(
        model=MODEL,
        messages=[
            LOOK,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": [pictures.chat_part()]},
        ],  # type: ignore[list-item]
    )
    result: Any = {"type": "tool_result", "tool_use_id": "c", "content": [pictures.block()]}
    use: Any = {"type": "tool_use", "id": "c", "name": "shot", "input": {}}
    turns: Any = [LOOK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    await clients.anthropic.messages.create(model=MODEL, max_tokens=1, messages=turns)
    items: Any = [
        LOOK,
        {"type": "function_call", "call_id": "c", "name": "shot", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [pictures.input_part() | {"detail": "high"}]},
    ]
    answer = await clients.openai.responses.with_raw_response.create(model=MODEL, input=items)
    assert answer.headers["x-plexus-ignored"] == "input[2].output[0].detail"
    assert len({encode(job.prompt.messages) for job in replica.received}) == 1
    assert replica.received[0].prompt.messages is not None
    assert replica.received[0].prompt.messages[-1]["content"] == [pictures.neutral()]


async def blind(bus: Bus, gateway: Running) -> None:
    """The model says that it takes no images, and the gateway knows it."""
    record = ModelRecord(id=MODEL, source="/models/x", context_limit=4096, capabilities={"vision": False})
    await Bucket(bus, names.PLAN).put(names.model_key(MODEL), encode(record))
    await eventually(lambda: _says_blind(gateway))


async def _says_blind(gateway: Running) -> bool:
    entry = (await gateway.http.get(f"/v1/models/{MODEL}")).json()
    return bool(entry.get("capabilities") == {"vision": False} and entry["modalities"]["input"] == ["text"])


async def refusals(clients: Clients) -> list[tuple[type[Exception], int, str, str | None]]:
    """What each API says to an image."""
    sends: list[Callable[..., Awaitable[Any]]] = [clients.chat, clients.messages, clients.responses]
    said = []
    for send in sends:
        for fields in ({}, {"stream": True}):
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                await send(**fields)
            error = caught.value.response.json()["error"]
            said.append((type(caught.value), caught.value.status_code, error["message"], error.get("param")))
    return said


async def test_gateway_and_replica_refuse_an_image_in_the_same_words(
    clients: Clients, replica: FakeReplica, bus: Bus, gateway: Running
) -> None:
    place = "messages[0].content[1]"
    replica.failure = ("invalid_request", no_sight(MODEL, place), place)
    by_replica = await refusals(clients)
    num_jobs = len(replica.received)
    await blind(bus, gateway)
    assert await refusals(clients) == by_replica
    assert len(replica.received) == num_jobs
    chat, _, messages, _, responses, _ = by_replica
    assert chat == (openai.BadRequestError, 400, no_sight(MODEL, place), place)
    assert messages == (anthropic.BadRequestError, 400, no_sight(MODEL, place), None)
    assert responses == (openai.BadRequestError, 400, no_sight(MODEL, "input[0].content[1]"), "input[0].content[1]")
    for path, body in (
        ("/v1/messages/count_tokens", {"messages": BLOCKS}),
        ("/v1/responses/input_tokens", {"input": INPUT}),
    ):
        answer = await gateway.http.post(path, json={"model": MODEL, **body})
        assert (answer.status_code, "takes no images" in answer.json()["error"]["message"]) == (400, True)


async def test_models_say_that_they_see(clients: Clients, bus: Bus, gateway: Running) -> None:
    record = ModelRecord(id=MODEL, source="/models/x", capabilities={"vision": True})
    await Bucket(bus, names.PLAN).put(names.model_key(MODEL), encode(record))
    await eventually(lambda: _modalities(clients))

    entry = strict(await clients.anthropic.models.retrieve(MODEL))
    assert entry.capabilities is not None
    assert (entry.capabilities.image_input.supported, entry.capabilities.thinking.supported) == (True, False)


async def _modalities(clients: Clients) -> bool:
    found = (await clients.openai.models.retrieve(MODEL)).to_dict()
    return bool(found["modalities"] == {"input": ["text", "image"], "output": ["text"]})


async def test_stored_images_are_given_back_and_continued_from(clients: Clients, replica: FakeReplica) -> None:
    first = await clients.responses()
    items = [strict(item) async for item in clients.openai.responses.input_items.list(first.id)]
    assert items[0].to_dict()["content"][1] == {"detail": "auto", **pictures.input_part()}  # type: ignore[index]
    await clients.responses(input="And?", previous_response_id=first.id)
    assert replica.received[-1].prompt.messages == [
        *NEUTRAL,
        {"role": "assistant", "content": " t0"},
        {"role": "user", "content": "And?"},
    ]
    second = await clients.responses(background=True)
    await eventually(lambda: _is_over(clients, second.id))


async def _is_over(clients: Clients, identifier: str) -> bool:
    return bool((await clients.openai.responses.retrieve(identifier)).status == "incomplete")


async def test_refusals_and_logs_repeat_nothing_of_an_image(
    clients: Clients, replica: FakeReplica, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = base64.b64encode(b"secret picture " * 40).decode()
    for url in (f"data:image/png;base64,{secret}", f"data:image/png;base64,{secret}!", secret):
        content: Any = [{"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError) as caught:
            await clients.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
        assert secret[:12] not in caught.value.message
    replica.failure = ("engine_error", "the engine failed", None)
    with pytest.raises(openai.InternalServerError):
        await clients.chat()
    said = " ".join(str(record.__dict__) for record in caplog.records)
    assert "engine_error" in said
    assert secret[:12] not in said
    assert pictures.neutral()["data"][:16] not in said


async def test_a_body_of_32_mb_with_images(clients: Clients, replica: FakeReplica) -> None:
    large = pictures.png() + bytes(11_900_000)
    content: Any = [pictures.chat_part(data=large), pictures.chat_part(data=large)]
    answer = await clients.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=1
    )
    assert answer.choices[0].message.content == " t0"
    assert replica.received[0].prompt.messages == [{"role": "user", "content": [pictures.neutral(data=large)] * 2}]
    assert replica.received[0].attempt == 1
    with pytest.raises(openai.APIStatusError) as caught:
        await clients.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": [*content, pictures.chat_part(data=large)]}]
        )
    assert caught.value.status_code == 413
