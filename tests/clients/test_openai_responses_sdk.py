"""The Responses API by the official Python SDK, every answer and event strictly of its own types."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from gateway.responses.store import Store, Stored
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Extra, ToolCall
from tests.clients.report import SCRIPTED, Tell
from tests.clients.strict import strict
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway

TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

THINKS_AND_CALLS = [
    ("", Extra(reasoning="hm "), None),
    ("", Extra(reasoning="yes"), None),
    ("I look.", None, None),
    ("", Extra(tool_calls=[ToolCall(0, "call_1", "weather", '{"city"')]), None),
    ("", Extra(tool_calls=[ToolCall(0, "", "", ':"Paris"}')]), None),
    ("", Extra(tool_calls=[ToolCall(1, "call_2", "apply_patch", '{"input":"***"}')]), "tool_calls"),
]


@pytest.fixture(autouse=True)
def row(tell: Tell) -> None:
    """All of these tests are one row."""
    did = "all of it, strictly by its types: streams, tools, storing, background, structured output, errors, faults"
    tell(client="openai (Python)", version=openai.__version__, surface="responses", did=did, model=SCRIPTED)


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def sent(replica: FakeReplica) -> list[dict[str, Any]]:
    """The messages of the job that the replica got last."""
    messages = replica.received[-1].prompt.messages
    assert messages is not None
    return messages


async def test_a_response(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    response = strict(
        await client.responses.create(model=MODEL, input="hi", instructions="be brief", max_output_tokens=3)
    )
    assert (response.output_text, response.status) == (" t0 t1 t2", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 3)
    assert response._request_id == f"req_{response.id.removeprefix('resp_')}"
    assert sent(replica) == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


async def test_a_stream_of_events_and_a_whole_tool_turn(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    replica.script = lambda job: THINKS_AND_CALLS
    stream = await client.responses.create(model=MODEL, input="hi", tools=[TOOL, PATCH], stream=True)
    numbers = []
    async for event in stream:
        EVENTS.validate_python(event.model_dump(exclude_unset=True, warnings=False), strict=True)
        numbers.append(event.sequence_number)
    assert numbers == list(range(len(numbers)))
    assert event.type == "response.completed"

    async with client.responses.stream(model=MODEL, input="hi", tools=[TOOL, PATCH], store=False) as helper:
        response = await helper.get_final_response()
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert response.output_text == "I look."

    replica.script = None
    history: Any = [
        {"role": "user", "content": "hi"},
        *(item.model_dump(exclude_unset=True) for item in response.output),
    ]
    for item in history:
        item.pop("parsed_arguments", None)
    history.append({"type": "function_call_output", "call_id": "call_1", "output": "rain"})
    history.append({"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"})
    await client.responses.create(model=MODEL, input=history, tools=[TOOL, PATCH], store=False)
    assert sent(replica)[1]["reasoning_content"] == "hm yes"
    calls = [call["function"] for call in sent(replica)[1]["tool_calls"]]
    assert calls == [
        {"name": "weather", "arguments": {"city": "Paris"}},
        {"name": "apply_patch", "arguments": {"input": "***"}},
    ]
    assert [message["content"] for message in sent(replica)[2:]] == ["rain", "done"]


async def test_a_conversation_goes_on_at_any_gateway(
    client: openai.AsyncOpenAI, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    first = await client.responses.create(model=MODEL, input="one", instructions="I", max_output_tokens=1)
    replica.script = lambda job: [("done", None, "stop")]
    async with running_gateway(broker) as other:
        elsewhere = client.with_options(base_url=f"{other.url}/v1")
        second = strict(
            await elsewhere.responses.create(
                model=MODEL, input="two", previous_response_id=first.id, metadata={"a": "b"}
            )
        )
        assert sent(replica) == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": " t0"},
            {"role": "user", "content": "two"},
        ]
        assert second.previous_response_id == first.id
        fetched = strict(await client.responses.retrieve(second.id))
        assert fetched.model_dump() == second.model_dump()
        # An item may be referred to in place of being sent again.
        reference: Any = {"type": "item_reference", "id": second.output[0].id}
        await client.responses.create(model=MODEL, input=[{"role": "user", "content": "x"}, reference])
        assert sent(replica)[1] == {"role": "assistant", "content": "done"}
        items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
        assert [item.to_dict()["content"][0]["text"] for item in items] == ["one", " t0", "two"]  # type: ignore[index]
        await elsewhere.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="was deleted"):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model=MODEL, input="x", previous_response_id=first.id)
        assert caught.value.code == "previous_response_not_found"


async def test_what_is_not_to_be_stored_is_not(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    response = await client.responses.create(model=MODEL, input="secret", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_../../x")


async def test_in_the_background(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    replica.go(2)
    queued = strict(await client.responses.create(model=MODEL, input="hi", background=True, max_output_tokens=4))
    assert queued.status == "queued"

    async def has_status(*status: str) -> Response | None:
        found = strict(await client.responses.retrieve(queued.id))
        return found if found.status in status else None

    await eventually(lambda: has_status("in_progress"))
    replica.go()
    found = await eventually(lambda: has_status("incomplete"))
    assert found.output_text == " t0 t1 t2 t3"


async def test_background_work_is_cancelled_from_any_gateway(
    client: openai.AsyncOpenAI, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    replica.go(1)
    queued = await client.responses.create(model=MODEL, input="hi", background=True)
    await eventually(lambda: bool(replica.runs))
    async with running_gateway(broker) as other:
        elsewhere = client.with_options(base_url=f"{other.url}/v1")
        cancelled = await elsewhere.responses.cancel(queued.id)
        assert cancelled.status == "cancelled"
        assert (await elsewhere.responses.cancel(queued.id)).status == "cancelled"
        await eventually(lambda: not replica.runs)
        plain = await elsewhere.responses.create(model=MODEL, input="hi", max_output_tokens=1)
        with pytest.raises(openai.BadRequestError, match="background"):
            await elsewhere.responses.cancel(plain.id)


async def test_background_work_of_a_gateway_that_is_gone_has_failed(
    client: openai.AsyncOpenAI, replica: FakeReplica, broker: EmbeddedBroker, bus: Bus
) -> None:
    replica.go(1)
    async with running_gateway(broker) as other:
        elsewhere = client.with_options(base_url=f"{other.url}/v1")
        queued = await elsewhere.responses.create(model=MODEL, input="hi", background=True)
        await eventually(lambda: bool(replica.runs))
    found = await client.responses.retrieve(queued.id)  # it ended in order
    assert (found.status, found.error is not None) == ("failed", True)
    response = found.to_dict() | {"status": "in_progress", "error": None}
    await Store(bus).put(Stored(response=response, gateway="killed"))
    found = await client.responses.retrieve(queued.id)
    assert found.status == "failed"
    assert found.error is not None
    assert "gateway" in found.error.message


def checked(event: Any) -> Any:
    """The event, once it is strictly of the library's types."""
    EVENTS.validate_python(event.model_dump(exclude_unset=True, warnings=False), strict=True)
    return event


async def test_background_work_streams_on_without_its_client(
    client: openai.AsyncOpenAI, replica: FakeReplica, broker: EmbeddedBroker
) -> None:
    replica.go(2)
    stream = await client.responses.create(
        model=MODEL, input="hi", background=True, stream=True, max_output_tokens=5, instructions="be brief"
    )
    seen: list[Any] = []
    async for event in stream:
        seen.append(checked(event))
        if event.type == "response.output_text.delta" and event.delta == " t1":
            break
    await stream.close()
    begun = [event.type.removeprefix("response.") for event in seen[:4]]
    assert begun == ["created", "queued", "in_progress", "output_item.added"]
    identifier = seen[0].response.id
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert replica.cancelled == []
    async with running_gateway(broker) as other:
        elsewhere = client.with_options(base_url=f"{other.url}/v1")
        again = await elsewhere.responses.retrieve(identifier, stream=True, starting_after=seen[-1].sequence_number)
        replica.go()
        rest = [checked(event) async for event in again]
        assert [event.delta for event in rest if event.type == "response.output_text.delta"] == [" t2", " t3", " t4"]
        whole = [checked(event) async for event in await elsewhere.responses.retrieve(identifier, stream=True)]
    assert [event.to_dict() for event in whole] == [event.to_dict() for event in (*seen, *rest)]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert whole[-1].type == "response.incomplete"
    raw = await client.responses.with_raw_response.retrieve(identifier, include=["reasoning.encrypted_content"])
    assert raw.headers["x-plexus-ignored"] == "include[]"
    fetched = strict(raw.parse())
    assert fetched.to_dict() == whole[-1].response.to_dict()
    assert fetched.output_text == " t0 t1 t2 t3 t4"
    last = whole[-1].sequence_number
    over = await client.responses.retrieve(identifier, stream=True, starting_after=last)
    assert [event async for event in over] == []
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(identifier)
        await client.responses.retrieve(identifier, stream=True)


async def test_streams_of_a_cancelled_response_end(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    replica.go(1)
    stream = await client.responses.create(model=MODEL, input="hi", background=True, stream=True)
    first = checked(await anext(aiter(stream)))
    follower = await client.responses.retrieve(first.response.id, stream=True)
    reading = asyncio.create_task(_all(follower))
    await eventually(lambda: bool(replica.runs))
    cancelled = strict(await client.responses.cancel(first.response.id))
    assert cancelled.status == "cancelled"
    for events in (await _all(stream), await reading):
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.status == "cancelled"


async def _all(stream: Any) -> list[Any]:
    return [checked(event) async for event in stream]


async def test_a_failure_in_the_background_is_the_last_event(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    replica.failure = ("invalid_request", "no such thing", "messages")
    events = await _all(await client.responses.create(model=MODEL, input="hi", background=True, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == ["created", "queued", "in_progress", "failed"]
    assert events[-1].response.error.message == "no such thing"
    assert (await client.responses.retrieve(events[0].response.id)).status == "failed"


async def test_events_that_were_not_kept_are_refused_with_the_reason(
    client: openai.AsyncOpenAI, replica: FakeReplica, gateway: Running
) -> None:
    plain = await client.responses.create(model=MODEL, input="hi", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="background: true and stream: true"):
        await client.responses.retrieve(plain.id, stream=True)
    for query in ("stream=true&starting_after=-1", "stream=true&starting_after=x", "starting_after=1", "stream=yes"):
        answer = await gateway.http.get(f"/v1/responses/{plain.id}?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == query.split("&")[-1].split("=")[0]


async def test_structured_output_is_a_constraint(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    class City(BaseModel):
        name: str

    replica.script = lambda job: [('{"name":', None, None), ('"Paris"}', None, "stop")]
    parsed = await client.responses.parse(model=MODEL, input="hi", text_format=City)
    assert parsed.output_parsed == City(name="Paris")
    constraint = replica.received[-1].constraint
    assert constraint is not None
    assert (constraint.kind, constraint.value["required"]) == ("json_schema", ["name"])


async def test_errors_are_of_the_right_classes(client: openai.AsyncOpenAI, replica: FakeReplica) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        await client.responses.create(model="acme/fake", input="hi")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="hi", truncation="some")  # type: ignore[arg-type]
    assert (caught.value.param, caught.value.type) == ("truncation", "invalid_request_error")
    replica.failure = ("context_length_exceeded", "This model's maximum context length is 8 tokens.", None)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="hi", stream=True)
    assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")


async def test_signs_of_life_are_events(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with (
        running_gateway(broker, accept_wait_s=0.05, keepalive_s=0.1) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = await client.responses.create(model=MODEL, input="hi", stream=True)
        events = stream.__aiter__()
        early = [(await anext(events)).type for _ in range(4)]
        assert early == ["response.created", *["response.in_progress"] * 3]
        replica = await FakeReplica.start(broker, MODEL)
        assert [event.type async for event in events][-1] == "response.incomplete"
        await replica.close()


async def test_a_conversation_that_cannot_be_stored_is_refused_before_it_runs(
    client: openai.AsyncOpenAI, replica: FakeReplica, bus: Bus
) -> None:
    text = "x" * (bus.max_payload - (1 << 20))
    with pytest.raises(openai.APIStatusError, match="store: false") as caught:
        await client.responses.create(model=MODEL, input=text)
    assert (caught.value.status_code, caught.value.response.json()["error"]["param"]) == (413, "store")
    assert replica.received == []
    await asyncio.wait_for(client.responses.create(model=MODEL, input=text, store=False, max_output_tokens=1), 20)
