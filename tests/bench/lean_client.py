"""A lean streaming client: raw HTTP/1.1 over asyncio sockets, so that the load generator's own cost stays small.

It parses nothing but what it measures: an event is one ``data: `` line, the first token is the first event whose chunk
carries content. Its own CPU time is part of the report.
"""

import asyncio
import json
import resource
import time
from dataclasses import dataclass, field
from typing import cast

_CONTENT = b'"content":"'  # an empty content, as in a role delta, does not count
_EMPTY = b'"content":""'


@dataclass
class Stream:
    """One finished stream."""

    status: int = 0
    events: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0
    tail: bytes = b""


@dataclass
class Load:
    """A finished load."""

    streams: list[Stream]
    wall_s: float
    client_cpu_s: float
    errors: list[str] = field(default_factory=list)

    @property
    def events(self) -> int:
        """Events of all streams."""
        return sum(s.events for s in self.streams)


def cpu_s() -> float:
    """CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class _Reader(asyncio.Protocol):
    def __init__(self, done: asyncio.Future[Stream], request: bytes) -> None:
        self._done, self._request, self._stream = done, request, Stream()
        self._carry = b""
        self._content_seen = False
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if not stream.status:
            stream.status = int(data[9:12])
        # a match may straddle two reads: look again at the last bytes of the read before
        joined = self._carry + data
        stream.events += joined.count(b"data: ") - self._carry.count(b"data: ")
        if not self._content_seen and joined.count(_CONTENT) > joined.count(_EMPTY):
            self._content_seen = True
            stream.first_token_s = time.perf_counter() - self._started
        self._carry = joined[-16:]
        if joined.endswith(b"0\r\n\r\n"):
            stream.tail = joined[-200:]
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._stream.total_s = time.perf_counter() - self._started
            self._done.set_result(self._stream)
            self._transport.close()


def chat_request(host: str, model: str, prompt: str, max_tokens: int, key: str = "sk-bench") -> bytes:
    """The bytes of a streaming chat request of one message."""
    return conversation_request(host, model, [{"role": "user", "content": prompt}], max_tokens, key)


def conversation_request(
    host: str, model: str, messages: list[dict[str, str]], max_tokens: int, key: str = "sk-bench"
) -> bytes:
    """The bytes of a streaming chat request."""
    body = json.dumps(
        {
            "model": model,
            "messages": messages,
            "stream": True,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def stream_once(host: str, port: int, request: bytes, timeout_s: float = 120.0) -> Stream:
    """One request on a connection of its own. Raises TimeoutError, ConnectionError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Stream] = loop.create_future()
    await loop.create_connection(lambda: _Reader(done, request), host, port)
    return await asyncio.wait_for(done, timeout_s)


async def run_load(host: str, port: int, request: bytes, *, clients: int, requests_each: int) -> Load:
    """`clients` concurrent clients, each sending its requests one after another."""
    streams: list[Stream] = []
    errors: list[str] = []

    async def client() -> None:
        for _ in range(requests_each):
            try:
                stream = await stream_once(host, port, request)
            except (TimeoutError, ConnectionError, OSError) as error:
                errors.append(repr(error))
                continue
            streams.append(stream)
            if stream.status != 200:
                errors.append(f"status {stream.status}: {stream.tail!r}")

    cpu, wall = cpu_s(), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(streams, time.perf_counter() - wall, cpu_s() - cpu, errors)
