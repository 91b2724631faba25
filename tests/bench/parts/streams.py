"""A lean streaming client that notes when each token came. It parses no JSON while streams run."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, cast

_END = b"data: [DONE]"


@dataclass
class Stream:
    """One finished stream."""

    started_at: float = 0.0
    at: list[float] = field(default_factory=list)  # of each event with content
    ended_at: float = 0.0
    status: int = 0
    body: bytes = b""

    @property
    def ttft_s(self) -> float:
        """From the request to the first event with content."""
        return self.at[0] - self.started_at

    def chunks(self) -> list[dict[str, Any]]:
        """The events."""
        return [json.loads(line[6:]) for line in _lines(self.body) if line.startswith(b"data: {")]

    @property
    def tokens(self) -> int:
        """Completion tokens as the server counts them, else events with content."""
        for chunk in reversed(self.chunks()):
            if usage := chunk.get("usage"):
                return int(usage["completion_tokens"])
        return len(self.at)

    @property
    def text(self) -> str:
        """The answer."""
        choices = [chunk["choices"][0] for chunk in self.chunks() if chunk.get("choices")]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def _lines(body: bytes) -> list[bytes]:
    _, _, payload = body.partition(b"\r\n\r\n")
    return [line for line in payload.replace(b"\r\n", b"\n").split(b"\n") if line]


class _Reader(asyncio.Protocol):
    def __init__(self, done: "asyncio.Future[Stream]", request: bytes, stream: Stream) -> None:
        self._done, self._request, self._stream = done, request, stream
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._stream.started_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._parts.append(data)
        if not self._stream.status:
            self._stream.status = int(data[9:12])
        content = data.count(b'"content":') - data.count(b'"content":""') - data.count(b'"content":null')
        self._stream.at += [now] * content
        if _END in data or data.endswith(b"0\r\n\r\n"):
            self._finish(now)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(time.perf_counter())

    def _finish(self, now: float) -> None:
        if not self._done.done():
            self._stream.ended_at, self._stream.body = now, b"".join(self._parts)
            self._done.set_result(self._stream)
            self._transport.close()


def request(host: str, model: str, messages: list[dict[str, str]], tokens: int, key: str = "sk-bench") -> bytes:
    """The bytes of a greedy streaming chat request."""
    body = json.dumps(
        {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "temperature": 0,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def stream(
    host: str, port: int, request: bytes, timeout_s: float = 3600.0, *, into: Stream | None = None
) -> Stream:
    """One request on a connection of its own. Raises RuntimeError unless it is answered with 200.

    Args:
        into: what came so far can be read there meanwhile; whoever has seen enough cancels.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Stream] = loop.create_future()
    held = into or Stream()
    transport, _ = await loop.create_connection(lambda: _Reader(done, request, held), host, port)
    try:
        found = await asyncio.wait_for(done, timeout_s)
    finally:
        transport.close()
    if found.status != 200 or not found.at:
        raise RuntimeError(f"status {found.status}: {found.body[-300:]!r}")
    return found
