"""The messages API by the official Python SDK, every answer and event strictly of its own types."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel, TypeAdapter

from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Extra, Failed, Job, ToolCall
from tests.clients.report import SCRIPTED, Tell
from tests.clients.strict import strict
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica, Piece
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway

HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
EVENTS: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)

THINKS_AND_CALLS = [
    ("", Extra(reasoning="hm "), None),
    ("", Extra(reasoning="yes"), None),
    ("I look.", None, None),
    ("", Extra(tool_calls=[ToolCall(0, "call_1", "weather", '{"city"')]), None),
    ("", Extra(tool_calls=[ToolCall(0, "", "", ':"Paris"}')]), "tool_calls"),
]


@pytest.fixture(autouse=True)
def row(tell: Tell) -> None:
    """All of these tests are one row."""
    did = "all of it, strictly by its types: streams, tools, thinking, structured output, counts, errors, faults"
    tell(
        client="anthropic (Python)", version=anthropic.__version__, surface="messages, models", did=did, model=SCRIPTED
    )


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any", max_retries=0) as client:
        yield client


async def test_a_message(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    message = strict(await client.messages.create(model=MODEL, max_tokens=3, messages=HI, system="be brief"))
    assert [block.model_dump() for block in message.content] == [
        {"citations": None, "text": " t0 t1 t2", "type": "text"}
    ]
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 3)
    assert message._request_id == f"req_{message.id.removeprefix('msg_')}"
    assert replica.received[0].prompt.messages == [{"role": "system", "content": "be brief"}, HI[0]]


async def test_a_stream_of_events(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    replica.script = lambda job: THINKS_AND_CALLS
    stream = await client.messages.create(model=MODEL, max_tokens=9, messages=HI, tools=[TOOL], stream=True)
    kinds = []
    async for event in stream:
        assert isinstance(event, BaseModel)
        EVENTS.validate_python(event.model_dump(exclude_unset=True, warnings=False), strict=True)
        kinds.append(event.type)
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3


async def test_the_stream_helper_and_a_whole_tool_turn(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    replica.script = lambda job: THINKS_AND_CALLS
    async with client.messages.stream(model=MODEL, max_tokens=9, messages=HI, tools=[TOOL]) as stream:
        streamed = strict(await stream.get_final_message())
    whole = strict(await client.messages.create(model=MODEL, max_tokens=9, messages=HI, tools=[TOOL]))
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    thinking, text, use = whole.content
    assert isinstance(thinking, anthropic.types.ThinkingBlock)
    assert isinstance(text, anthropic.types.TextBlock)
    assert isinstance(use, anthropic.types.ToolUseBlock)
    assert (thinking.thinking, bool(thinking.signature), text.text) == ("hm yes", True, "I look.")
    assert (use.name, use.input, whole.stop_reason) == ("weather", {"city": "Paris"}, "tool_use")
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (4, 5)

    replica.script = None
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    turns: Any = [*HI, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    await client.messages.create(model=MODEL, max_tokens=2, messages=turns, tools=[TOOL])
    sent = replica.received[-1].prompt.messages
    assert sent is not None
    assert sent[1]["reasoning_content"] == "hm yes"
    assert sent[2] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}


async def test_the_tool_runner_goes_on_without_a_thread(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    asked = []

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "rain"

    def script(job: Job) -> Sequence[Piece]:
        messages = job.prompt.messages or []
        return [("Rain.", None, "stop")] if messages[-1]["role"] == "tool" else THINKS_AND_CALLS

    replica.script = script
    runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=9, messages=HI, tools=[weather])
    last = await runner.until_done()
    assert asked == ["Paris"]
    (block,) = last.content
    assert isinstance(block, anthropic.types.beta.BetaTextBlock)
    assert block.text == "Rain."
    assert len({job.id for job in replica.received}) == 2  # a job may be delivered twice


async def test_a_stop_sequence_is_named(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    replica.script = lambda job: [("one", None, None), ("", Extra(stopped="END"), "stop")]
    message = strict(await client.messages.create(model=MODEL, max_tokens=9, messages=HI, stop_sequences=["END"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


async def test_structured_output_is_a_constraint(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    class City(BaseModel):
        name: str

    replica.script = lambda job: [('{"name":', None, None), ('"Paris"}', None, "stop")]
    parsed = await client.messages.parse(model=MODEL, max_tokens=9, messages=HI, output_format=City)
    assert parsed.parsed_output == City(name="Paris")
    constraint = replica.received[-1].constraint
    assert constraint is not None
    assert (constraint.kind, constraint.value["required"]) == ("json_schema", ["name"])


async def test_the_beta_namespace(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    message = await client.beta.messages.create(
        model=MODEL,
        max_tokens=1,
        messages=HI,
        betas=["context-management-2025-06-27"],
        context_management={"edits": []},
    )
    assert message.stop_reason == "max_tokens"


async def test_models(client: anthropic.AsyncAnthropic, replica: FakeReplica, bus: Bus) -> None:
    await put_model(bus, "acme/other", created_s=1.5)
    await eventually(lambda: _num_models(client, 2))
    page = strict(await client.models.list(limit=1))
    assert ([model.id for model in page.data], page.has_more) == ([MODEL], True)
    assert [strict(model).id async for model in client.models.list(limit=1)] == [MODEL, "acme/other"]
    model = strict(await client.models.retrieve(MODEL))
    assert (model.type, model.max_input_tokens, model.display_name) == ("model", 4096, MODEL)
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        await client.models.retrieve("acme/nothing")


async def _num_models(client: anthropic.AsyncAnthropic, wanted: int) -> bool:
    return len([model async for model in client.models.list()]) == wanted


async def test_errors_are_of_the_right_classes(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    with pytest.raises(anthropic.NotFoundError, match="did you mean"):
        await client.messages.create(model="acme/fake", max_tokens=1, messages=HI)
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.role"):
        await client.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "robot", "content": ""}])  # type: ignore[typeddict-item]
    replica.failure = ("context_length_exceeded", "This model's maximum context length is 8 tokens.", None)
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        await client.messages.create(model=MODEL, max_tokens=1, messages=HI)
    replica.failure = ("engine_error", "the engine failed", None)
    with pytest.raises(anthropic.InternalServerError, match="the engine failed") as caught:
        await client.messages.create(model=MODEL, max_tokens=1, messages=HI)
    assert caught.value.type == "api_error"


async def test_a_stream_that_breaks_ends_with_an_error(client: anthropic.AsyncAnthropic, replica: FakeReplica) -> None:
    replica.go(2)
    stream = await client.messages.create(model=MODEL, max_tokens=9, messages=HI, stream=True)
    seen = []
    with pytest.raises(anthropic.APIStatusError, match="out of luck"):
        async for event in stream:
            seen.append(event.type)
            if event.type == "content_block_delta":
                job = replica.received[0]
                await replica.say(job.reply, [Failed(job.id, 1, "engine_error", "out of luck")])
    assert seen[0] == "message_start"


async def test_pings_come_while_it_waits(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=0.05, keepalive_s=0.1) as gateway:
        body = {"model": MODEL, "max_tokens": 2, "messages": HI, "stream": True}
        async with gateway.http.stream("POST", "/v1/messages", json=body) as response:
            assert response.status_code == 200, await response.aread()
            lines = response.aiter_lines()
            early = [await anext(lines)]
            while early.count("event: ping") < 2:
                early.append(await anext(lines))
                assert not early[-1].startswith("event: ") or early[-1] == "event: ping", early
            assert early[0].startswith(": plexus state=")
            replica = await FakeReplica.start(broker, MODEL)
            rest = [line async for line in lines]
            assert rest[-3:] == ["event: message_stop", 'data: {"type":"message_stop"}', ""]
            await replica.close()
