"""Events to the Responses API's bytes: every event validated by the SDK's own types, streams and answers alike."""

from typing import Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.dialects import opaque
from gateway.dialects.openai_responses import DIALECT, parse
from gateway.errors import ContextLengthExceeded, InvalidRequest, QueueFull, Unavailable
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened, Waiting
from shared.messages import Delta, Extra, Timings, TokenLogprob, ToolCall, Usage

END = Finished(Usage(5, 3, 1, 2), Timings(0.1, 0.2, 0.3))
OPEN = Opened(5, "fp")
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [
    {"type": "function", "name": "f", "parameters": {}},
    {"type": "custom", "name": "patch"},
    {"type": "namespace", "name": "mail", "description": "d", "tools": [{"type": "function", "name": "send"}]},
]


def a_request(**fields: Any) -> InferenceRequest:
    return parse({"model": 'm/"1"', "input": "hi", "tools": TOOLS, **fields}, {})


def delta(text: str = "", finish: str | None = None, **extra: Any) -> Delta:
    return Delta("j", 1, 0, 0, [1], text, finish, Extra(**extra) if extra else None)


def call(index: int, arguments: str, *, id: str = "", name: str = "") -> Delta:
    return delta(tool_calls=[ToolCall(index, id, name, arguments)])


def decoded(data: bytes) -> list[Any]:
    """The events in some bytes, each under its own name; comments left out."""
    values = []
    for frame in data.decode().removesuffix("\n\n").split("\n\n"):
        if not frame.startswith(":"):
            name, _, text = frame.partition("\n")
            value = orjson.loads(text.removeprefix("data: "))
            assert name == f"event: {value['type']}"
            values.append(value)
    return values


def streamed(request: InferenceRequest, *events: Event) -> list[Any]:
    """The events of a stream, numbered from 0 and valid."""
    stream = DIALECT.stream(request, "resp_1", 1700000000)
    values = decoded(b"".join(stream.write(event) for event in events))
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    for value in values:
        EVENTS.validate_json(orjson.dumps(value), strict=True)
    assert stream.has_ended
    assert stream.response == values[-1]["response"]
    return values


def whole(request: InferenceRequest, *events: Event) -> Any:
    answer = DIALECT.whole(request, "resp_1", 1700000000)
    for event in events:
        answer.add(event)
    body = answer.body(END)
    TypeAdapter(Response).validate_json(body, strict=True)
    return orjson.loads(body)


def kinds(events: list[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


STORY = [
    OPEN,
    delta(reasoning="hm"),
    delta(reasoning=" yes"),
    delta("Hel"),
    delta('lo "\n\U0001f600'),
    call(0, '{"a"', id="c1", name="f"),
    call(0, ":1}"),
    call(1, '{"input": "*** Begin', id="c2", name="patch"),
    call(1, '\\n"}'),
    call(2, "{}", id="c3", name="mail__send"),
    delta(finish="tool_calls"),
]


def test_a_stream_and_a_whole_response_say_the_same() -> None:
    events, response = streamed(a_request(), *STORY, END), whole(a_request(), *STORY)
    assert events[-1]["response"] == response
    assert kinds(events)[:2] == ["created", "in_progress"]
    assert kinds(events)[-1] == "completed"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    assert [event["output_index"] for event in events if "output_item.added" in event["type"]] == [0, 1, 2, 3, 4]
    thought, message, function, custom, spaced = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm yes"}]
    assert message["content"][0]["text"] == 'Hello "\n\U0001f600'
    assert (function["name"], function["arguments"], function["call_id"]) == ("f", '{"a":1}', "c1")
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "patch", "*** Begin\n")
    assert (spaced["name"], spaced["namespace"]) == ("send", "mail")
    assert response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 8,
    }
    assert len({item["id"] for item in response["output"]}) == 5


def test_deltas_add_up_to_what_is_done() -> None:
    events = streamed(a_request(), *STORY, END)
    for kind, key in (
        ("reasoning_text", "text"),
        ("output_text", "text"),
        ("function_call_arguments", "arguments"),
        ("custom_tool_call_input", "input"),
    ):
        deltas: dict[int, str] = {}
        for event in events:
            if event["type"] == f"response.{kind}.delta":
                deltas[event["output_index"]] = deltas.get(event["output_index"], "") + event["delta"]
        done = {event["output_index"]: event[key] for event in events if event["type"] == f"response.{kind}.done"}
        assert deltas == done != {}


def test_a_summary_is_the_reasoning_in_the_place_that_clients_show() -> None:
    request = a_request(reasoning={"summary": "auto"}, include=["reasoning.encrypted_content"])
    events, response = streamed(request, *STORY, END), whole(request, *STORY)
    thought = response["output"][0]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm yes"}]
    assert "content" not in thought
    assert opaque.unwrap(thought["encrypted_content"]) == "hm yes"
    assert kinds(events)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]


def test_a_cut_answer_is_incomplete() -> None:
    events = streamed(a_request(), OPEN, delta("a"), delta("b", finish="length"), END)
    assert kinds(events)[-1] == "incomplete"
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "ab"


def test_logprobs_where_they_are_wanted() -> None:
    entry = TokenLogprob(1, "a", -0.5, [(1, "a", -0.5), (2, "b", -1.0)])
    wanted = a_request(top_logprobs=2)
    events = streamed(wanted, OPEN, delta("a", logprobs=[entry]), delta(finish="stop"), END)
    (piece,) = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [one["token"] for one in piece["logprobs"][0]["top_logprobs"]] == ["a", "b"]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == piece["logprobs"]


def test_signs_of_life_are_numbered_events_after_the_first() -> None:
    stream = DIALECT.stream(a_request(), "resp_1", 1700000000)
    first = DIALECT.keepalive(Waiting("loading", 3), stream)
    assert first.startswith(b": plexus state=loading waiting=3\n\n")
    again = DIALECT.keepalive(Waiting("queued", 1), stream)
    events = decoded(first + again + stream.write(OPEN) + stream.write(END))
    assert kinds(events) == ["created", "in_progress", "in_progress", "completed"]
    assert [event["sequence_number"] for event in events] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no replica"), "server_error"),
        (QueueFull("m"), "rate_limit_exceeded"),
        (InvalidRequest("bad"), "invalid_prompt"),
        (ContextLengthExceeded("long"), "context_length_exceeded"),
    ],
)
def test_a_broken_stream_ends_as_failed(error: Any, code: str) -> None:
    stream = DIALECT.stream(a_request(), "resp_1", 1700000000)
    events = decoded(b"".join(stream.write(event) for event in (OPEN, delta("a"), Broken(error))))
    assert kinds(events)[-1] == "failed"
    assert events[-1]["response"]["error"] == {"code": code, "message": error.message}
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert stream.has_ended
    last = decoded(DIALECT.error_event(error, "req_1"))[0]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", code)


def test_errors_speak_of_the_input() -> None:
    body = orjson.loads(DIALECT.error_body(InvalidRequest("bad", param="messages[0]")))
    assert (body["error"]["param"], body["error"]["type"]) == ("input", "invalid_request_error")
