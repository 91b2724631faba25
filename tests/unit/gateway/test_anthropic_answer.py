"""Events to Anthropic's bytes: every event validated by the SDK's own types, streams and whole messages alike."""

from typing import Any

import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from gateway.dialects import anthropic_errors, opaque
from gateway.dialects.anthropic_messages import DIALECT, Notes
from gateway.errors import BodyTooLarge, ContextLengthExceeded, InvalidRequest, ModelNotFound, QueueFull, Unavailable
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened, Waiting
from shared.messages import Delta, Extra, Timings, ToolCall, Usage

END = Finished(Usage(5, 3, 1, 2), Timings(0.1, 0.2, 0.3))
OPEN = Opened(5, "fp")
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def delta(text: str = "", finish: str | None = None, **extra: Any) -> Delta:
    return Delta("j", 1, 0, 0, [1], text, finish, Extra(**extra) if extra else None)


def call(index: int, arguments: str, *, id: str = "", name: str = "") -> Delta:
    return delta(tool_calls=[ToolCall(index, id, name, arguments)])


def a_request(*, omitted: bool = False) -> InferenceRequest:
    return InferenceRequest(model='m/"1"', notes=Notes(omitted))


def streamed(*events: Event, omitted: bool = False) -> list[Any]:
    """The events of a stream, each valid and under its own name."""
    stream = DIALECT.stream(a_request(omitted=omitted), "msg_1", 0)
    frames = b"".join(stream.write(event) for event in events).decode().removesuffix("\n\n").split("\n\n")
    values = []
    for frame in frames:
        name, _, data = frame.partition("\n")
        value = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        if value["type"] not in ("ping", "error"):
            EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        values.append(value)
    assert stream.has_ended
    return values


def whole(*events: Event, omitted: bool = False) -> Any:
    answer = DIALECT.whole(a_request(omitted=omitted), "msg_1", 0)
    for event in events:
        answer.add(event)
    body = answer.body(END)
    TypeAdapter(Message).validate_json(body, strict=True)
    return orjson.loads(body)


def content_of(events: list[Any]) -> list[Any]:
    """The blocks that a client puts together, checking that they are opened and closed one after another."""
    blocks: list[Any] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
            is_open = True
        elif event["type"] == "content_block_delta":
            assert is_open and event["index"] == len(blocks) - 1
            piece = dict(event["delta"])
            key = piece.pop("type").removesuffix("_delta")
            (value,) = piece.values()
            key = "arguments" if key == "input_json" else key
            blocks[-1][key] = blocks[-1].get(key, "") + value
        elif event["type"] == "content_block_stop":
            assert is_open
            is_open = False
    assert not is_open
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = orjson.loads(block.pop("arguments", "{}"))
    return blocks


STORY = [
    OPEN,
    delta(reasoning="hm"),
    delta(reasoning=" yes"),
    delta("Hel"),
    delta('lo "\n\U0001f600'),
    call(0, '{"a"', id="c1", name="f"),
    call(0, ":1}"),
    call(1, "{}", id="c2", name="g"),
    delta(finish="tool_calls"),
]


def test_a_stream_and_a_whole_message_say_the_same() -> None:
    events, message = streamed(*STORY, END), whole(*STORY)
    assert content_of(events) == message["content"]
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][0]["thinking"] == "hm yes"
    assert message["content"][2] == {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
    assert [events[0]["type"], events[-2]["type"], events[-1]["type"]] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"].items() <= message["usage"].items()
    assert message["usage"]["input_tokens"] == 3
    assert message["usage"]["cache_read_input_tokens"] == 2
    assert message["timings"] == {"queue_s": 0.1, "load_s": 0.0, "prefill_s": 0.2, "decode_s": 0.3}


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (delta(finish="stop"), "end_turn", None),
        (delta(finish="length"), "max_tokens", None),
        (delta(finish="stop", stopped="END"), "stop_sequence", "END"),
        (delta(finish="content_filter"), "refusal", None),
        (delta(finish="something new"), "end_turn", None),
    ],
)
def test_stop_reasons(last: Delta, reason: str, sequence: str | None) -> None:
    message = whole(OPEN, delta("a"), last)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert streamed(OPEN, delta("a"), last, END)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_omitted_thinking_travels_in_the_signature() -> None:
    events, message = streamed(*STORY, END, omitted=True), whole(*STORY, omitted=True)
    assert content_of(events) == message["content"]
    assert message["content"][0]["thinking"] == ""
    assert opaque.unwrap(message["content"][0]["signature"]) == "hm yes"


def test_an_empty_answer_is_a_message_too() -> None:
    assert [event["type"] for event in streamed(OPEN, delta(finish="stop"), END)] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    assert whole(OPEN, delta(finish="stop"))["content"] == []


def test_a_call_that_was_cut_is_still_an_object() -> None:
    message = whole(OPEN, call(0, '{"a": "b', id="c1", name="f"), delta(finish="length"))
    assert message["content"][0]["input"] == {"_incomplete": '{"a": "b'}
    assert message["stop_reason"] == "max_tokens"


def test_signs_of_life_are_pings_that_people_can_read() -> None:
    data = DIALECT.keepalive(Waiting("loading", 3))
    assert data == b': plexus state=loading waiting=3\n\nevent: ping\ndata: {"type":"ping"}\n\n'


def test_a_broken_stream_ends_with_an_error_and_the_request_id() -> None:
    last = streamed(OPEN, delta("a"), Broken(Unavailable("no replica")))[-1]
    assert last == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "no replica"},
        "request_id": "req_1",
    }


def test_error_types_are_those_that_clients_know() -> None:
    def kind(error: Any) -> str:
        return str(anthropic_errors.envelope(error)["error"]["type"])

    assert kind(InvalidRequest("m")) == "invalid_request_error"
    assert kind(ModelNotFound("m", [])) == "not_found_error"
    assert kind(BodyTooLarge(2, 1)) == "request_too_large"
    assert kind(QueueFull("m")) == "rate_limit_error"
    too_long = ContextLengthExceeded("x", tokens=9000, limit=4096)
    message = orjson.loads(DIALECT.error_body(too_long, "req_9"))
    assert message["error"]["message"] == "prompt is too long: 9000 tokens > 4096 maximum"
    assert message["request_id"] == "req_9"
    assert orjson.loads(anthropic_errors.to_json(InvalidRequest("\ud800")))["error"]["message"] == "?"
