"""OpenAI's Python SDK against a whole fleet: a chat model and two embedding models, small and with random weights."""

import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.cli.intents import put_intent, put_model
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import IntentRecord, ModelRecord
from tests.clients.report import RANDOM, Tell
from tests.clients.strict import strict
from tests.support import embedders
from tests.support.fleet_process import FleetProcess
from tests.support.tiny import make_checkpoint

HI: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(autouse=True)
def row(tell: Tell) -> None:
    """All of these tests are one row."""
    did = "whole and streamed, strictly by its types; vectors as transformers makes them; errors"
    surface = "chat, completions, embeddings, models"
    tell(client="openai (Python)", version=openai.__version__, surface=surface, did=did, model=RANDOM)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by model id."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": make_checkpoint(folder / "tiny"),
        "bert": embedders.make_bert(folder / "bert"),
        "qwen": embedders.make_qwen3(folder / "qwen"),
    }


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("fleet"), "--model", models["tiny"]) as fleet:
        yield fleet.started()


@pytest.fixture
async def client(fleet: FleetProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=fleet.api, api_key="any", max_retries=0, timeout=60) as client:
        yield client


async def test_chat_whole_and_streamed_say_the_same(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 24, "n": 2, "logprobs": True}
    whole = strict(await client.chat.completions.create(**options))
    assert whole.usage is not None
    assert whole.choices[0].message.content == whole.choices[1].message.content
    assert whole.choices[0].finish_reason in ("stop", "length")
    texts, usage = ["", ""], None
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = strict(chunk).usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


async def test_a_completion_continues_its_prompt(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": "tiny", "temperature": 0, "max_tokens": 12}
    both = strict(await client.completions.create(**options, prompt=["One two", "The river"]))
    alone = strict(await client.completions.create(**options, prompt="The river", echo=True))
    assert alone.choices[0].text == "The river" + both.choices[1].text
    assert both.usage is not None
    assert alone.usage is not None
    assert both.usage.completion_tokens >= alone.usage.completion_tokens


async def test_what_the_worker_refuses_is_a_400(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x " * 4000}])
    assert refused.value.code == "context_length_exceeded"
    assert "maximum context length" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="tiny", prompt=[5, 10**6])
    assert refused.value.param == "prompt"


async def embedder(fleet: FleetProcess, model: ModelRecord) -> None:
    """Declare an embedding model, and load it."""
    async with await Bus.connect(fleet.bus_settings(), kind="cli", ident="test") as bus, Fleet(bus) as view:
        await put_model(bus, model)
        await put_intent(bus, IntentRecord(model=model.id, want="loaded", by="test"))
        await view.wait_for(lambda view: any(r.state == "ready" for r in view.replicas_of(model.id)), timeout_s=60)


def expected(path: Path, pooling: str) -> list[list[float]]:
    """What transformers makes of the sentences, one at a time."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    model = AutoModel.from_pretrained(path)
    vectors = []
    for text in embedders.SENTENCES:
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[-1]
        vectors.append((vector / vector.norm()).tolist())
    return vectors


@pytest.mark.parametrize(("name", "pooling"), [("bert", "mean"), ("qwen", "last")])
async def test_embeddings_are_those_of_transformers(
    fleet: FleetProcess, client: openai.AsyncOpenAI, models: dict[str, Path], name: str, pooling: str
) -> None:
    path = models[name]
    await embedder(fleet, ModelRecord(id=f"lab/{name}", source=str(path), task="embed", aliases=[f"{name}-alias"]))
    wanted = expected(path, pooling)
    answer = strict(await client.embeddings.create(model=f"{name}-alias", input=embedders.SENTENCES))
    assert answer.model == f"{name}-alias"
    for one, vector in zip(answer.data, wanted, strict=True):
        assert one.embedding == pytest.approx(vector, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(wanted)
    shorter = await client.embeddings.create(
        model=f"lab/{name}", input=embedders.SENTENCES[0], dimensions=8, encoding_format="float"
    )
    length = math.sqrt(sum(number**2 for number in wanted[0][:8]))
    assert shorter.data[0].embedding == pytest.approx([number / length for number in wanted[0][:8]], abs=1e-5)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model=f"lab/{name}", input=["fine", "x " * 4000])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input[1]")
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        await client.chat.completions.create(model=f"lab/{name}", messages=HI)
    entry = (await client.models.retrieve(f"lab/{name}")).model_extra or {}
    assert (entry["type"], entry["state"]) == ("embeddings", "ready")


async def test_the_models_say_what_they_can(client: openai.AsyncOpenAI) -> None:
    tiny = strict(await client.models.retrieve("tiny")).model_extra or {}
    assert tiny["capabilities"] == {"tools": True, "reasoning": True, "vision": False}
    assert (tiny["state"], tiny["context_length"]) == ("ready", 512)
