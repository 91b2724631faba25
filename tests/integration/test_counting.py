"""Counts of tokens, from the gateway over the bus to a process that holds nothing but tokenizers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.kv import Bucket
from shared.messages import Prompt, encode
from shared.records import WorkerRecord
from tests.clients.strict import strict
from tests.integration.conftest import Connect
from tests.support.eventually import eventually
from tests.support.hub import running_hub
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.agent.counting import Counting
from worker.text.model_text import ModelText

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
HI: Any = [{"role": "user", "content": "The river rises in the hills."}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", sentencepiece_tokenizer("gemma", []), template=TEMPLATE)


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus, model: Path) -> AsyncIterator[Running]:
    """A gateway with a cold model whose files lie on this host."""
    await put_model(bus, source=str(model))
    async with running_gateway(broker) as gateway:
        yield gateway


@asynccontextmanager
async def counting_worker(connect: Connect, name: str) -> AsyncIterator[Counting]:
    """A host that counts, heard by the server."""
    worker = await connect("worker", name)
    async with Counting(worker, name) as counting:
        await worker.flush()
        yield counting


async def count(gateway: Running, messages: list[Any] = HI, model: str = MODEL) -> httpx.Response:
    return await gateway.http.post(
        "/v1/messages/count_tokens", json={"model": model, "messages": messages, "tools": []}
    )


async def test_counts_are_exact_and_need_no_loaded_model(gateway: Running, connect: Connect, model: Path) -> None:
    expected = len(ModelText.load(model).encode(Prompt(messages=HI)))
    async with counting_worker(connect, "w1") as counting:
        answers = await asyncio.gather(*(count(gateway) for _ in range(24)))
        assert {answer.text for answer in answers} == {f'{{"input_tokens":{expected}}}'}
        body = {"model": MODEL, "input": HI[0]["content"]}
        answer = await gateway.http.post("/v1/responses/input_tokens", json=body)
        assert answer.json() == {"object": "response.input_tokens", "input_tokens": expected}
        answer = await gateway.http.post("/v1/responses/input_tokens", json=body | {"zz": 1})
        assert answer.headers["x-plexus-ignored"] == "zz"
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any", max_retries=0) as claude:
            assert strict(await claude.messages.count_tokens(model=MODEL, messages=HI)).input_tokens == expected
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
            counted = strict(await client.responses.input_tokens.count(model=MODEL, input=HI))
            assert counted.input_tokens == expected
        # The process may end at any time, and comes back with the next question.
        assert counting._child is not None
        counting._child.kill()
        assert (await count(gateway)).json() == {"input_tokens": expected}
    assert (await count(gateway)).status_code == 503


async def test_without_a_worker_it_says_what_to_do(gateway: Running) -> None:
    answer = await count(gateway)
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert "Start one" in answer.json()["error"]["message"]
    assert answer.json()["request_id"] == answer.headers["request-id"]
    assert answer.headers["retry-after"] == "5"


async def test_refusals_have_their_own_envelope(gateway: Running) -> None:
    assert (await count(gateway, [])).status_code == 400
    unknown = await count(gateway, model="nobody/knows")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    body = {"model": MODEL, "input": "x", "previous_response_id": "resp_nothing"}
    answer = await gateway.http.post("/v1/responses/input_tokens", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "previous_response_id")


async def test_the_worker_that_has_the_files_is_found(
    gateway: Running, connect: Connect, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts, and the directory lies on one of them only."""
    fleet = Bucket(bus, names.FLEET)
    for worker in ("w1", "w2"):
        await fleet.put(
            names.worker_key(worker), encode(WorkerRecord(name=worker, incarnation="i", host="h")), ttl_s=60
        )
    while (await gateway.http.get("/health")).json()["workers"] < 2:
        pass
    asked: list[str] = []
    for worker, answer in (("w1", b'{"problem":"elsewhere","message":"not here"}'), ("w2", b'{"tokens":7}')):
        user = await connect("worker", worker)

        async def respond(message: Any, worker: str = worker, answer: bytes = answer) -> None:
            asked.append(worker)
            await message.respond(answer)

        await user.subscribe(names.worker_count(worker), respond)
        if worker == "w1":
            await user.subscribe(names.COUNT, respond, queue=names.COUNT_QUEUE)
        await user.flush()
    assert (await count(gateway)).json() == {"input_tokens": 7}
    assert asked == ["w1", "w1", "w2"]


async def test_only_the_tokenizer_of_a_repository_is_downloaded(
    broker: EmbeddedBroker, bus: Bus, connect: Connect, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "model.safetensors").write_bytes(b"x" * 100_000)
    expected = len(ModelText.load(model).encode(Prompt(messages=HI)))
    await put_model(bus, source="acme/words")
    with running_hub() as hub:
        hub.repositories["acme/words"] = model
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        async with running_gateway(broker) as gateway:
            async with counting_worker(connect, "w1"):
                assert (await count(gateway)).json() == {"input_tokens": expected}
            fetched = {sent.file for sent in hub.sent}
            assert "tokenizer.json" in fetched
            assert "model.safetensors" not in fetched
            hub.repositories.clear()  # what is in the cache is enough from now on
            async with counting_worker(connect, "w2"):
                assert (await count(gateway)).json() == {"input_tokens": expected}
            await put_model(bus, "acme/none", source="acme/none")
            async with counting_worker(connect, "w3"):
                await eventually(lambda: _is_listed(gateway, "acme/none"))
                answer = await count(gateway, model="acme/none")
                assert answer.status_code == 503
                assert "cannot be downloaded" in answer.json()["error"]["message"]


async def _is_listed(gateway: Running, model: str) -> bool:
    return model in [one["id"] for one in (await gateway.http.get("/v1/models")).json()["data"]]
