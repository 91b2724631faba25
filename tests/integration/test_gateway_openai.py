"""OpenAI's surfaces over a real gateway and a scripted replica, by the official SDK and its own types."""

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.share import share_of
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.kv import Bucket
from shared.messages import Constraint, Embedded, Extra, Prompt, TokenLogprob, ToolCall, encode
from shared.records import MeasuredRecord, Measurement
from tests.clients.strict import strict
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica, vector_of
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway

EMBEDDER = "acme/embed-1"
HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LOGPROBS = [TokenLogprob(1, " a", -0.5, [(1, " a", -0.5), (2, " b", -1.0)])]


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway that knows a chat model with an alias, and an embedding model."""
    await put_model(bus, aliases=["gpt-4o"], context_limit=4096, cost={"input": 1.0})
    await put_model(bus, EMBEDDER, task="embed")
    async with running_gateway(broker) as gateway:
        yield gateway


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """A replica of the chat model."""
    replica = await FakeReplica.start(broker, MODEL)
    yield replica
    await replica.close()


@pytest.fixture
async def embedder(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """A replica of the embedding model."""
    replica = await FakeReplica.start(broker, EMBEDDER)
    yield replica
    await replica.close()


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        yield client


# --- chat ----------------------------------------------------------------------------------------------------


async def test_what_a_chat_asks_for_is_in_its_job(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    strict(
        await client.chat.completions.create(
            model=MODEL,
            messages=HI,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "f"}},
            parallel_tool_calls=False,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            reasoning_effort="low",
            metadata={"k": "v"},
            seed=5,
            logit_bias={"7": -100},
        )
    )
    (job,) = replica.received
    assert (job.prompt.tool_choice, job.prompt.parallel_tool_calls, job.job_class) == ("=f", False, "interactive")
    assert job.constraint == Constraint(kind="json_schema", value=schema)
    assert job.prompt.template == {"enable_thinking": True, "reasoning_effort": "low"}
    assert (job.sampling.seed, job.sampling.logit_bias) == (5, {7: -100.0})


async def test_a_tier_that_waits_goes_into_the_queue_of_batch_jobs(
    client: openai.AsyncOpenAI, gateway: Running, broker: EmbeddedBroker
) -> None:
    replica = await FakeReplica.start(broker, MODEL, job_class="batch")
    await client.chat.completions.create(model=MODEL, messages=HI, service_tier="flex")
    assert replica.received[0].job_class == "batch"
    await replica.close()


CALLS = [
    ("", Extra(reasoning="Let me "), None),
    ("", Extra(reasoning="see."), None),
    ("Calling.", Extra(logprobs=LOGPROBS), None),
    ("", Extra(tool_calls=[ToolCall(0, "call_0", "f")]), None),
    ("", Extra(tool_calls=[ToolCall(0, arguments='{"a": ')]), None),
    ("", Extra(tool_calls=[ToolCall(0, arguments="1}"), ToolCall(1, "call_1", "f", "{}")]), None),
    ("", None, "tool_calls"),
]


async def test_calls_and_reasoning_in_one_piece(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    replica.script = lambda job: CALLS
    answer = strict(
        await client.chat.completions.create(model=MODEL, messages=HI, tools=[TOOL], logprobs=True, top_logprobs=2)
    )
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Calling.")
    assert choice.message.model_extra == {"reasoning_content": "Let me see."}
    calls: Any = choice.message.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_0", "f", '{"a": 1}'),
        ("call_1", "f", "{}"),
    ]
    assert choice.logprobs is not None
    assert [one.token for one in (choice.logprobs.content or [])[0].top_logprobs] == [" a", " b"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_calls_and_reasoning_in_a_stream(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    replica.script = lambda job: CALLS
    async with client.chat.completions.stream(model=MODEL, messages=HI, tools=[TOOL]) as stream:
        chunks = [strict(event.chunk) async for event in stream if event.type == "chunk"]
        final = (await stream.get_final_completion()).choices[0]
    assert (final.finish_reason, final.message.content) == ("tool_calls", "Calling.")
    assert [call.function.arguments for call in final.message.tool_calls or []] == ['{"a": 1}', "{}"]
    reasoning = [chunk.choices[0].delta.model_extra or {} for chunk in chunks if chunk.choices]
    assert "".join(one.get("reasoning_content", "") for one in reasoning) == "Let me see."


async def test_the_answer_names_the_model_as_it_was_asked(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    answer = await client.chat.completions.create(model="gpt-4o", messages=HI)
    assert (answer.model, replica.received[0].model) == ("gpt-4o", MODEL)
    stream = await client.chat.completions.create(model="gpt-4o", messages=HI, stream=True)
    assert {strict(chunk).model async for chunk in stream} == {"gpt-4o"}


async def test_a_client_that_leaves_after_the_last_event_has_succeeded(
    gateway: Running, replica: FakeReplica, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="gateway"):
        async with gateway.http.stream("POST", "/v1/chat/completions", json=gateway.chat(stream=True)) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    break  # and the connection is cut before the end of the answer is read
        lines = lambda: [record.__dict__["fields"] for record in caplog.records if record.msg == "request"]  # noqa: E731
        await eventually(lambda: bool(lines()))
    assert [line["outcome"] for line in lines()] == ["ok"]
    assert replica.cancelled == []


async def test_a_stream_that_waits_for_a_load_says_so(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    measured = MeasuredRecord(model=MODEL, variant="", loads=[Measurement(worker="w", bytes=1, load_s=7.0)])
    await Bucket(bus, names.PLAN).put(names.measured_key(MODEL), encode(measured))
    async with (
        running_gateway(broker, accept_wait_s=0) as gateway,
        gateway.http.stream("POST", "/v1/chat/completions", json=gateway.chat(stream=True)) as response,
    ):
        assert (response.headers["x-plexus-state"], response.headers["x-plexus-estimate"]) == ("cold", "7")
        lines = response.aiter_lines()
        assert await anext(lines) == ": plexus state=cold estimate_s=7"
        replica = await FakeReplica.start(broker, MODEL)
        assert [line async for line in lines if line][-1] == "data: [DONE]"
        await replica.close()


async def test_a_stream_that_need_not_wait_says_so_too(gateway: Running, replica: FakeReplica) -> None:
    async with gateway.http.stream("POST", "/v1/chat/completions", json=gateway.chat(stream=True)) as response:
        assert response.headers["x-plexus-state"] == "running"
        assert "x-plexus-position" not in response.headers


# --- completions ---------------------------------------------------------------------------------------------


async def test_a_completion(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    answer = strict(await client.completions.create(model=MODEL, prompt="Once", max_tokens=3, echo=True))
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "Once t0 t1 t2",
        "length",
    )
    assert replica.received[0].prompt == Prompt(text="Once")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)


async def test_the_length_of_a_completion_has_a_default(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    await client.completions.create(model=MODEL, prompt=[5, 6, 7])
    assert (replica.received[0].prompt, replica.received[0].sampling.max_tokens) == (Prompt(ids=[5, 6, 7]), 16)


async def test_many_prompts_are_many_jobs_and_one_answer(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    answer = strict(await client.completions.create(model=MODEL, prompt=["a", "b", "c"], n=2, max_tokens=2, echo=True))
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (index, f"{prompt} t0 t1") for index, prompt in enumerate("aabbcc")
    ]
    assert sorted(job.prompt.text or "" for job in replica.received) == ["a", "b", "c"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (21, 12)
    stream = await client.completions.create(
        model=MODEL, prompt=[[1], [2]], max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    usage = None
    async for chunk in stream:
        strict(chunk, finish_reason="stop")  # null before the end, as OpenAI's own are
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: " t0 t1 t2", 1: " t0 t1 t2"}
    assert usage is not None
    assert usage.completion_tokens == 6


async def test_if_one_prompt_fails_all_do(client: openai.AsyncOpenAI, replica: FakeReplica, gateway: Running) -> None:
    replica.ignores = lambda job: job.prompt.text == "a"
    replica.failure = ("context_length_exceeded", "too long", "prompt")
    with pytest.raises(openai.BadRequestError, match="too long"):
        await client.completions.create(model=MODEL, prompt=["a", "b"])
    assert await gateway.metric(f'plexus_in_flight{{model="{MODEL}"}}') == 0


async def test_logprobs_of_a_completion(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    pieces = [(" a", Extra(logprobs=LOGPROBS), None), (" a", Extra(logprobs=LOGPROBS), "stop")]
    replica.script = lambda job: pieces
    answer = strict(await client.completions.create(model=MODEL, prompt="x", logprobs=2))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == ([" a", " a"], [-0.5, -0.5], [0, 2])
    assert logprobs.top_logprobs == [{" a": -0.5, " b": -1.0}] * 2


async def test_the_best_of_several(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    answer = strict(await client.completions.create(model=MODEL, prompt="x", n=1, best_of=3, max_tokens=2))
    assert (len(answer.choices), answer.choices[0].logprobs) == (1, None)
    assert (replica.received[0].sampling.n, replica.received[0].sampling.logprobs) == (3, 0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6  # all that was made


# --- embeddings ----------------------------------------------------------------------------------------------


def numbers(index: int) -> list[float]:
    return list(struct.unpack("<4f", vector_of(index)))


async def test_embeddings_in_both_encodings(client: openai.AsyncOpenAI, embedder: FakeReplica) -> None:
    for options in ({}, {"encoding_format": "float"}):  # the SDK asks for base64 unless told
        answer = strict(await client.embeddings.create(model=EMBEDDER, input=["a", "b"], **options))
        assert [one.embedding for one in answer.data] == [numbers(0), numbers(1)]
        assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == (EMBEDDER, 7, 7)
    assert [one.text for one in embedder.received[0].inputs] == ["a", "b"]
    raw = await client.embeddings.with_raw_response.create(model=EMBEDDER, input="a", encoding_format="base64")
    assert isinstance(raw.http_response.json()["data"][0]["embedding"], str)


async def test_embeddings_of_token_ids(client: openai.AsyncOpenAI, embedder: FakeReplica) -> None:
    await client.embeddings.create(model=EMBEDDER, input=[1, 2, 3])
    await client.embeddings.create(model=EMBEDDER, input=[[1], [2, 3]])
    assert {job.share for job in embedder.received} == {share_of({"authorization": "Bearer any"})}
    assert [job.inputs for job in embedder.received] == [
        [Prompt(ids=[1, 2, 3])],
        [Prompt(ids=[1]), Prompt(ids=[2, 3])],
    ]


async def test_fewer_dimensions_have_length_one_again(client: openai.AsyncOpenAI, embedder: FakeReplica) -> None:
    answer = await client.embeddings.create(model=EMBEDDER, input="a", dimensions=2)
    assert answer.data[0].embedding == pytest.approx([0.5**0.5, -(0.5**0.5)])
    with pytest.raises(openai.BadRequestError, match="at most 4") as refused:
        await client.embeddings.create(model=EMBEDDER, input="a", dimensions=5)
    assert refused.value.param == "dimensions"


async def test_a_lost_vector_is_asked_for_again(client: openai.AsyncOpenAI, embedder: FakeReplica) -> None:
    lost: list[Embedded] = []

    def loses(item: object) -> bool:
        if isinstance(item, Embedded) and item.choice == 1 and not lost:
            lost.append(item)
            return True
        return False

    embedder.loses = loses
    answer = await client.embeddings.create(model=EMBEDDER, input=["a", "b", "c"])
    assert [one.embedding for one in answer.data] == [numbers(0), numbers(1), numbers(2)]
    assert [replay.positions for replay in embedder.replays] == [[1, 0, 1]]


async def test_vectors_of_a_lost_replica_are_not_computed_twice(
    client: openai.AsyncOpenAI, broker: EmbeddedBroker, embedder: FakeReplica
) -> None:
    embedder.loses = lambda item: not isinstance(item, Embedded) or item.choice == 1
    embedder.failure = None
    asking = asyncio.create_task(client.embeddings.create(model=EMBEDDER, input=["a", "b"]))
    await eventually(lambda: bool(embedder.finished))
    await embedder.die()
    other = await FakeReplica.start(broker, EMBEDDER)
    answer = await asking
    assert [one.embedding for one in answer.data] == [numbers(0), numbers(1)]
    assert [one.finish for one in other.received[0].resume] == ["stop", None]
    await other.close()


# --- models --------------------------------------------------------------------------------------------------


async def test_models_say_what_tools_look_for(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    listed = {model.id: strict(model).model_extra or {} async for model in client.models.list()}
    assert sorted(listed) == [EMBEDDER, MODEL, "gpt-4o"]
    assert (listed[MODEL]["state"], listed[MODEL]["context_length"], listed[MODEL]["aliases"]) == (
        "ready",
        4096,
        ["gpt-4o"],
    )
    assert (listed["gpt-4o"]["alias_of"], listed["gpt-4o"]["cost"]) == (MODEL, {"input": 1.0})
    assert (listed[EMBEDDER]["type"], listed[EMBEDDER]["state"]) == ("embeddings", "cold")
    assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
    assert (await client.models.retrieve(MODEL)).id == MODEL  # an id with a slash


async def test_a_model_is_asked_for_what_it_is_made_for(client: openai.AsyncOpenAI, gateway: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        await client.chat.completions.create(model=EMBEDDER, messages=HI)
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        await client.completions.create(model=EMBEDDER, prompt="x")
    with pytest.raises(openai.BadRequestError, match="embedding model"):
        await client.embeddings.create(model=MODEL, input="x")
