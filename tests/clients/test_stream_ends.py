"""How streams begin, wait, break and end, byte by byte, on every surface: what real clients were seen to depend on.

Some clients send a request again for ever when a stream ends without a word, or with a word they do not know; others
give up on a stream that is silent for minutes, or choke on a sign of life of another surface's kind.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.messages import Extra, Failed, ToolCall
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica, text_of
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway

HI = [{"role": "user", "content": "hi"}]
CALL = Extra(tool_calls=[ToolCall(0, "call_1", "weather", "{}")])
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {}}}


@dataclass(frozen=True)
class Surface:
    """A way to ask for a stream."""

    path: str
    body: dict[str, Any]

    def asked(self, num_tokens: int) -> dict[str, Any]:
        """A body for an answer of so many tokens at most."""
        name = "max_output_tokens" if self.path == "/v1/responses" else "max_tokens"
        return {"model": MODEL, "stream": True, name: num_tokens} | self.body


SURFACES = {
    "chat": Surface("/v1/chat/completions", {"messages": HI, "tools": [{"type": "function", "function": TOOL}]}),
    "completions": Surface("/v1/completions", {"prompt": "hi"}),
    "messages": Surface(
        "/v1/messages", {"messages": HI, "tools": [{"name": "weather", "input_schema": TOOL["parameters"]}]}
    ),
    "responses": Surface("/v1/responses", {"input": "hi", "tools": [{"type": "function", "strict": False, **TOOL}]}),
}


class Frames:
    """A stream as it comes: each frame a comment, or an event with its name and its data."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.seen: list[tuple[str, Any]] = []

    async def next(self) -> tuple[str, Any] | None:
        """The next frame: ("comment", text), or (its type, data); None at the end."""
        frame = [line async for line in _until_blank(self._lines)]
        if not frame:
            return None
        if frame[0].startswith(":"):
            assert len(frame) == 1, frame
            self.seen.append(("comment", frame[0]))
        else:
            name = frame[0].removeprefix("event: ") if frame[0].startswith("event: ") else None
            raw = frame[-1].removeprefix("data: ")
            data: Any = {} if raw == "[DONE]" else json.loads(raw)
            kind = "[DONE]" if raw == "[DONE]" else data.get("type") or ("error" if "error" in data else "chunk")
            assert name in (None, kind), frame
            self.seen.append((kind, data))
        return self.seen[-1]

    async def rest(self) -> list[tuple[str, Any]]:
        """Every frame so far and to come."""
        while await self.next() is not None:
            pass
        return self.seen

    async def until(self, kinds: set[str]) -> tuple[str, Any]:
        """The first frame of these kinds."""
        while (frame := await self.next()) is not None:
            if frame[0] in kinds:
                return frame
        raise AssertionError(f"the stream ended without any of {kinds}: {self.seen}")


async def _until_blank(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        if not line:
            return
        yield line


@asynccontextmanager
async def streaming(gateway: Running, surface: Surface, num_tokens: int) -> AsyncIterator[Frames]:
    """The frames of a stream."""
    async with gateway.http.stream("POST", surface.path, json=surface.asked(num_tokens)) as response:
        assert response.status_code == 200, await response.aread()
        yield Frames(response.aiter_lines())


def text_in(frames: list[tuple[str, Any]]) -> str:
    """The text of a stream, whatever its surface."""
    text = ""
    for kind, data in frames:
        if kind == "chunk" and data["choices"]:
            choice = data["choices"][0]
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
        elif kind == "response.output_text.delta":
            text += data["delta"]
        elif kind == "content_block_delta":
            text += data["delta"].get("text", "")
    return text


def finish_in(frames: list[tuple[str, Any]]) -> str:
    """How the stream says that it ended; AssertionError unless it says so once, at its end, in a word that is known."""
    kind, last = frames[-1]
    if kind == "[DONE]":
        found = [one["finish_reason"] for _, data in frames[:-1] for one in data.get("choices", [])]
        (finish,) = [one for one in found if one is not None]
        assert finish in ("stop", "length", "tool_calls", "content_filter")
        return str(finish)
    if kind == "message_stop":
        before, delta = frames[-2]
        assert before == "message_delta"
        assert {"input_tokens", "output_tokens"} <= set(delta["usage"])
        assert delta["delta"]["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal")
        return str(delta["delta"]["stop_reason"])
    assert kind in ("response.completed", "response.incomplete"), kind
    assert last["response"]["usage"]["output_tokens"] > 0
    return str((last["response"]["incomplete_details"] or {}).get("reason") or last["response"]["status"])


def error_in(frames: list[tuple[str, Any]]) -> dict[str, Any]:
    """The error that a stream ended with; AssertionError unless it is the last frame, in the surface's own form."""
    kind, last = frames[-1]
    assert kind in ("error", "response.failed"), kind
    error: dict[str, Any] = last["response"]["error"] if kind == "response.failed" else last["error"]
    assert error["message"]
    assert not {"[DONE]", "message_stop", "message_delta", "response.completed"} & {one for one, _ in frames}
    return error


ENDINGS = {
    # finish of the engine: what chat, completions, messages and responses call it
    "stop": ("stop", "stop", "end_turn", "completed"),
    "length": ("length", "length", "max_tokens", "max_output_tokens"),
    "content_filter": ("content_filter", "content_filter", "refusal", "content_filter"),
    "tool_calls": ("tool_calls", "tool_calls", "tool_use", "completed"),
    "something new": ("stop", "stop", "end_turn", "completed"),
}


async def test_every_end_has_a_word_that_clients_know(gateway: Running, replica: FakeReplica) -> None:
    for finish, words in ENDINGS.items():
        calls = CALL if finish == "tool_calls" else None
        for surface, word in zip(SURFACES.values(), words, strict=True):
            own = None if surface.path == "/v1/completions" else calls
            replica.script = lambda job, own=own, finish=finish: [("one", None, None), ("", own, finish)]
            async with streaming(gateway, surface, 9) as stream:
                frames = await stream.rest()
            assert finish_in(frames) == word
            assert text_in(frames) == "one"


async def begin(stream: Frames) -> None:
    """Read the first two tokens."""
    while text_in(stream.seen) != text_of(0, 2):
        assert await stream.next() is not None, stream.seen


async def test_a_failure_in_the_middle_is_an_error_and_then_the_end(gateway: Running, replica: FakeReplica) -> None:
    replica.go(2)
    for surface in SURFACES.values():
        async with streaming(gateway, surface, 9) as stream:
            await begin(stream)
            job = replica.received[-1]
            await replica.say(job.reply, [Failed(job.id, 1, "engine_error", "out of luck")])
            frames = await stream.rest()
        assert error_in(frames)["message"] == "out of luck"
        assert text_in(frames) == text_of(0, 2)


async def test_replicas_that_are_lost_for_good_are_an_error_too(gateway: Running, replica: FakeReplica) -> None:
    replica.go(2)
    for surface in SURFACES.values():
        replica.failure = None
        async with streaming(gateway, surface, 9) as stream:
            await begin(stream)
            replica.failure = ("replica_lost", "the rank died", None)
            job = replica.received[-1]
            await replica.say(job.reply, [Failed(job.id, 1, "replica_lost", "the rank died")])
            frames = await stream.rest()
        assert "attempts" in error_in(frames)["message"]


async def test_a_gateway_that_stops_says_so_in_its_streams(
    broker: EmbeddedBroker, gateway: Running, replica: FakeReplica
) -> None:
    replica.go(2)
    async with running_gateway(broker) as other, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(streaming(other, one, 9)) for one in SURFACES.values()]
        for stream in streams:
            await begin(stream)
        other.task.cancel()
        for stream in streams:
            assert "shutting down" in error_in(await stream.rest())["message"]


async def test_an_error_before_the_stream_is_no_stream(gateway: Running, replica: FakeReplica) -> None:
    replica.failure = ("invalid_request", "no such thing", "messages")
    for surface in SURFACES.values():
        answer = await gateway.http.post(surface.path, json=surface.asked(9))
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["type"] == "invalid_request_error"  # others make clients try again


# Signs of life: what each surface's clients take, at any place in a stream.
ALIVE = {
    "chat": {"comment"},
    "completions": {"comment"},
    "messages": {"comment", "ping"},
    "responses": {"comment", "response.in_progress"},
}
COUNTED = {"messages": "ping", "responses": "response.in_progress"}  # those that clients count as life; else comments


@pytest.fixture
async def lively(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway that is quick with signs of life."""
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=0.05, keepalive_s=0.05) as gateway:
        yield gateway


async def test_a_long_wait_in_the_queue_is_bridged(lively: Running, broker: EmbeddedBroker) -> None:
    async with AsyncExitStack() as stack:
        # The streams have begun, and nobody has their jobs.
        streams = {name: await stack.enter_async_context(streaming(lively, one, 3)) for name, one in SURFACES.items()}
        for name, stream in streams.items():
            while [kind for kind, _ in stream.seen].count(COUNTED.get(name, "comment")) < 4:
                assert await stream.next() is not None
            kinds = [kind for kind, _ in stream.seen]
            if name == "responses":
                assert [kind for kind in kinds if kind != "comment"][:2] == ["response.created", "response.in_progress"]
                kinds.remove("response.created")
            assert set(kinds) <= ALIVE[name]
        replica = await FakeReplica.start(broker, MODEL)
        for name, stream in streams.items():
            frames = [one for one in await stream.rest() if one[0] not in ("comment", "ping")]
            assert text_in(frames) == text_of(0, 3)
            assert finish_in(frames) in ("length", "max_tokens", "max_output_tokens")
            if name == "responses":
                assert [data["sequence_number"] for _, data in frames] == list(range(len(frames)))
        await replica.close()


async def test_a_pause_in_the_middle_is_bridged(lively: Running, broker: EmbeddedBroker) -> None:
    replica = await FakeReplica.start(broker, MODEL)
    for name, surface in SURFACES.items():
        replica.go(2)
        async with streaming(lively, surface, 4) as stream:
            await begin(stream)
            pause = [await stream.next() for _ in range(4)]
            replica.go()
            frames = await stream.rest()
        kinds = {frame[0] for frame in pause if frame is not None}
        assert COUNTED.get(name, "comment") in kinds
        assert kinds <= ALIVE[name]
        assert text_in(frames) == text_of(0, 4)
    await replica.close()


LAST = {"messages": b"message_stop", "responses": b"response.incomplete"}  # else [DONE]


async def test_whoever_hangs_up_at_the_last_event_has_had_an_answer(gateway: Running, replica: FakeReplica) -> None:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    for name, surface in SURFACES.items():
        for _ in range(5):
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps(surface.asked(3)).encode()
            head = f"POST {surface.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            await reader.readuntil(LAST.get(name, b"[DONE]"))
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a farewell
            writer.transport.abort()
    label = f'plexus_requests_total{{model="{MODEL}",outcome="ok",worker="w1"}}'
    await eventually(lambda: _is(gateway, label, 5 * len(SURFACES)))
    assert replica.cancelled == []


async def _is(gateway: Running, label: str, value: float) -> bool:
    return await gateway.metric(label) == value
