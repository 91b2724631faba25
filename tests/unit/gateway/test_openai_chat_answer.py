"""Events to OpenAI's bytes: streams, whole answers, and that both say the same."""

from typing import Any

import orjson

from gateway.dialects.openai_chat import DIALECT
from gateway.dialects.openai_chat_answer import Notes, Stream, Whole
from gateway.errors import Unavailable
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened, Waiting
from shared.messages import Delta, Extra, Prompt, Sampling, Timings, TokenLogprob, ToolCall, Usage

END = Finished(Usage(5, 3, 1, 2), Timings(0.1, 0.2, 0.3))
OPEN = Opened(5, "fp")


def a_request(**fields: Any) -> InferenceRequest:
    sampling = Sampling(n=fields.pop("n", 1), logprobs=fields.pop("logprobs", None))
    return InferenceRequest(model='m/"1"', prompt=Prompt(messages=[]), sampling=sampling, **fields)


def delta(text: str = "", *, choice: int = 0, finish: str | None = None, extra: Extra | None = None) -> Delta:
    return Delta("j", 1, choice, 0, [1], text, finish, extra)


def streamed(request: InferenceRequest, *events: Event) -> list[Any]:
    """The data events of a stream, decoded; comments and the end as text."""
    stream = Stream(request, "chatcmpl-1", 1700000000)
    data = b"".join(stream.write(event) for event in events).decode()
    assert data.endswith("\n\n")
    frames = data.removesuffix("\n\n").split("\n\n")
    return [
        orjson.loads(frame.removeprefix("data: ")) if frame.startswith("data: {") else frame.removeprefix("data: ")
        for frame in frames
    ]


def deltas(events: list[Any]) -> list[Any]:
    return [event["choices"][0]["delta"] for event in events if isinstance(event, dict) and event.get("choices")]


def whole(request: InferenceRequest, *events: Event) -> Any:
    answer = Whole(request, "chatcmpl-1", 1700000000)
    for event in events:
        answer.add(event)
    return orjson.loads(answer.body(END))


def test_a_stream_from_role_to_done() -> None:
    events = streamed(a_request(), OPEN, delta("Hel"), delta('lo "\n\U0001f600'), delta(finish="stop"), END)
    assert events[-1] == "[DONE]"
    assert deltas(events) == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": 'lo "\n\U0001f600'},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, None, "stop"]
    for event in events[:-1]:
        assert (event["id"], event["object"], event["created"]) == ("chatcmpl-1", "chat.completion.chunk", 1700000000)
        assert (event["model"], event["system_fingerprint"]) == ('m/"1"', "fp")
        assert "usage" not in event


def test_one_event_for_each_token() -> None:
    assert len(streamed(a_request(), OPEN, *[delta("x")] * 10)) == 11


def test_usage_comes_last_when_asked_for() -> None:
    events = streamed(a_request(include_usage=True), OPEN, delta("x", finish="stop"), END)
    assert [event["usage"] for event in events[:-2]] == [None, None, None]
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert events[-2]["timings"] == {"queue_s": 0.1, "load_s": 0.0, "prefill_s": 0.2, "decode_s": 0.3}


def test_every_choice_has_its_role_and_its_finish() -> None:
    events = streamed(a_request(n=2), OPEN, delta("a", choice=1, finish="stop"), delta("b", finish="length"), END)
    seen = [
        (one["index"], one["delta"].get("role"), one["finish_reason"])
        for event in events[:-1]
        for one in event["choices"]
    ]
    assert seen == [
        (0, "assistant", None),
        (1, "assistant", None),
        (1, None, None),
        (1, None, "stop"),
        (0, None, None),
        (0, None, "length"),
    ]


def test_keep_alives_are_comments() -> None:
    assert DIALECT.keepalive(Waiting("queued", 3)) == b": plexus state=queued waiting=3\n\n"
    assert DIALECT.keepalive(Waiting("prefill")) == b": plexus state=prefill\n\n"


def test_an_error_ends_a_stream_without_a_finish() -> None:
    stream = Stream(a_request(), "c", 1)
    events = streamed(a_request(), OPEN, delta("x"), Broken(Unavailable("gone")))
    assert events[-1]["error"]["code"] == "unavailable"
    assert all(event.get("choices", [{}])[0].get("finish_reason") is None for event in events)
    stream.write(Broken(Unavailable("gone")))
    assert stream.has_ended


def test_an_answer_that_moved_shows_its_new_fingerprint() -> None:
    events = streamed(a_request(), OPEN, delta("a"), Opened(5, "other"), delta("b"))
    assert [event["system_fingerprint"] for event in events] == ["fp", "fp", "other"]


def test_a_lost_acceptance_still_brings_a_role() -> None:
    events = streamed(a_request(), delta("a"))
    assert deltas(events) == [{"role": "assistant", "content": ""}, {"content": "a"}]


def test_half_a_character_makes_no_event() -> None:
    assert deltas(streamed(a_request(), OPEN, delta(""), delta("é"))) == [
        {"role": "assistant", "content": ""},
        {"content": "é"},
    ]


THOUGHT = (
    delta(extra=Extra(reasoning="I ")),
    delta(extra=Extra(reasoning="think")),
    delta("so"),
    delta("."),
    delta(finish="stop"),
)


def test_reasoning_is_apart_from_the_content() -> None:
    got = deltas(streamed(a_request(), OPEN, *THOUGHT))[1:]
    assert got == [{"reasoning_content": "I "}, {"reasoning_content": "think"}, {"content": "so"}, {"content": "."}, {}]
    message = whole(a_request(), OPEN, *THOUGHT)["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("so.", "I think")


def test_reasoning_is_put_back_when_asked_for() -> None:
    request = a_request(include_thinking=True)
    got = deltas(streamed(request, OPEN, *THOUGHT))[1:]
    assert [one["content"] for one in got if one] == ["<think>I ", "think", "</think>so", "."]
    message = whole(request, OPEN, *THOUGHT)["choices"][0]["message"]
    assert message["content"] == "<think>I think</think>so."
    assert "reasoning_content" not in message


def test_thinking_that_ends_with_the_answer_is_closed() -> None:
    request = a_request(include_thinking=True)
    events = (delta(extra=Extra(reasoning="hm")), delta(finish="length"))
    got = deltas(streamed(request, OPEN, *events))[1:]
    assert [one.get("content") for one in got] == ["<think>hm", "</think>", None]


CALLS = delta(
    finish="tool_calls", extra=Extra(tool_calls=[ToolCall(0, "c0", "f", '{"a":1}'), ToolCall(1, "c1", "g", "{}")])
)


def test_tool_calls_in_a_stream_come_name_first() -> None:
    events = streamed(a_request(), OPEN, CALLS, END)
    calls = [one["tool_calls"][0] for one in deltas(events) if "tool_calls" in one]
    assert calls == [
        {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":1}'}},
        {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


PIECES = (
    delta(extra=Extra(tool_calls=[ToolCall(0, "c0", "f")])),
    delta(extra=Extra(tool_calls=[ToolCall(0, arguments='{"a"')])),
    delta(extra=Extra(tool_calls=[ToolCall(0, arguments=":1}"), ToolCall(1, "c1", "g", "{")])),
    delta(extra=Extra(tool_calls=[ToolCall(1, arguments="}")]), finish="tool_calls"),
)


def test_pieces_of_tool_calls_join() -> None:
    events = streamed(a_request(), OPEN, *PIECES, END)
    calls = [one["tool_calls"][0] for one in deltas(events) if "tool_calls" in one]
    assert [call["index"] for call in calls] == [0, 0, 0, 1, 1, 1]
    assert [call["function"]["arguments"] for call in calls] == ["", '{"a"', ":1}", "", "{", "}"]
    assert [call["id"] for call in calls if "id" in call] == ["c0", "c1"]
    whole_calls = whole(a_request(), OPEN, *PIECES)["choices"][0]["message"]["tool_calls"]
    assert [call["function"] for call in whole_calls] == [
        {"name": "f", "arguments": '{"a":1}'},
        {"name": "g", "arguments": "{}"},
    ]


def test_finish_reasons_are_those_that_clients_know() -> None:
    strange = delta("x", finish="exhausted")
    assert streamed(a_request(), OPEN, strange, END)[-2]["choices"][0]["finish_reason"] == "stop"
    assert whole(a_request(), OPEN, strange)["choices"][0]["finish_reason"] == "stop"


def test_tool_calls_in_one_piece() -> None:
    choice = whole(a_request(), OPEN, CALLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][1] == {
        "id": "c1",
        "type": "function",
        "function": {"name": "g", "arguments": "{}"},
    }


LOGPROBS = delta("é", extra=Extra(logprobs=[TokenLogprob(7, "é", -0.5, [(7, "é", -0.5), (8, "e", -1.5)])]))
ENTRY = {
    "token": "é",
    "logprob": -0.5,
    "bytes": [195, 169],
    "top_logprobs": [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
        {"token": "e", "logprob": -1.5, "bytes": [101]},
    ],
}


def test_logprobs_have_openais_shape() -> None:
    request = a_request(logprobs=2)
    events = streamed(request, OPEN, LOGPROBS)
    assert events[-1]["choices"][0]["logprobs"] == {"content": [ENTRY], "refusal": None}
    assert whole(request, OPEN, LOGPROBS)["choices"][0]["logprobs"] == {"content": [ENTRY], "refusal": None}
    assert whole(a_request(), OPEN, delta("x"))["choices"][0]["logprobs"] is None


def test_logprobs_of_a_token_without_text_are_not_lost() -> None:
    bare = delta(extra=Extra(logprobs=[TokenLogprob(7, "", -0.5)]))
    assert streamed(a_request(logprobs=0), OPEN, bare)[-1]["choices"][0]["logprobs"]["content"]


def test_an_answer_in_one_piece() -> None:
    body = whole(a_request(n=2), OPEN, delta("a"), delta("b", finish="stop"), delta("c", choice=1, finish="length"))
    assert (body["id"], body["object"], body["system_fingerprint"]) == ("chatcmpl-1", "chat.completion", "fp")
    assert [(one["index"], one["message"]["content"], one["finish_reason"]) for one in body["choices"]] == [
        (0, "ab", "stop"),
        (1, "c", "length"),
    ]
    assert body["usage"]["total_tokens"] == 8


def test_who_speaks_of_functions_is_answered_so() -> None:
    events = [
        OPEN,
        delta(extra=Extra(tool_calls=[ToolCall(0, "call_1", "f", "{")])),
        delta(extra=Extra(tool_calls=[ToolCall(0, arguments="}")])),
        delta(finish="tool_calls"),
    ]
    request = a_request(notes=Notes(is_legacy=True))
    frames = streamed(request, *events, END)
    assert deltas(frames)[1:] == [
        {"function_call": {"name": "f", "arguments": "{"}},
        {"function_call": {"arguments": "}"}},
        {},
    ]
    assert frames[-2]["choices"][0]["finish_reason"] == "function_call"
    choice = whole(request, *events)["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]
