"""The short way of a message: from the bytes that arrive to its listener, past the library's reader, task and parser.

nats-py wakes a task for each piece that arrives, and its parser looks for six kinds of line and copies twice, which was
a quarter of what gateway and queue add to a first token. So whole messages of listeners at the front of a piece are
handed over as it arrives, provided that the library has dealt with all that came before; what remains goes its way.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from nats.aio.msg import Msg
from nats.protocol.parser import AWAITING_CONTROL_LINE

Listener = Callable[[Msg], None]

_CRLF = b"\r\n"
HEADER_LINE = b"NATS/1.0\r\n"


class HeardMsg(Msg):  # type: ignore[misc]
    """A message whose headers are read when somebody asks for them."""

    def __init__(self, client: Any, sid: int, subject: str, reply: str, data: bytes, head: bytes) -> None:
        self._client = client
        self._sid = sid
        self.subject = subject
        self.reply = reply
        self.data = data
        self._head = head

    @cached_property
    def headers(self) -> dict[str, str] | None:
        """As nats-py has them; None if there are none."""
        if not self._head:
            return None
        headers: dict[str, str] = self._client._parse_header_lines(self._head[len(HEADER_LINE) :])
        return headers


class ShortWay:
    """Stands before the stream reader of one connection of `client`.

    Args:
        client: whose messages these are.
        reader: the `asyncio.StreamReader` that its read loop waits for.
        listeners: by subscription id.
    """

    def __init__(self, client: Any, reader: Any, listeners: Mapping[int, Listener]) -> None:
        self._client = client
        self._reader = reader
        self._parser = client._ps
        self._listeners = listeners
        self._feed: Callable[[bytes], None] = reader.feed_data
        reader.feed_data = self.feed_data

    def feed_data(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._is_library_idle:
            taken = self._hand_over(data)
            if taken:
                data = data[taken:]
                if not data:
                    return
        self._feed(data)

    @property
    def _is_library_idle(self) -> bool:
        """Whether it has dealt with everything before this, and waits for the start of a line."""
        waiter = self._reader._waiter
        parser = self._parser
        return waiter is not None and not waiter.done() and not parser.buf and parser.state == AWAITING_CONTROL_LINE

    def _hand_over(self, data: bytes) -> int:
        """Give messages to their listeners, up to the first that has none, or is not whole. Returns the bytes taken."""
        at, stats = 0, self._client.stats
        while True:
            end = data.find(_CRLF, at)
            words = data[at:end].split(b" ") if end >= 0 else []
            if len(words) < 4 or words[0] not in (b"MSG", b"HMSG"):
                return at
            has_head = words[0] == b"HMSG"
            listener = self._listeners.get(int(words[2]))
            head_size = int(words[-2]) if has_head else 0
            size = int(words[-1])
            start = end + len(_CRLF)
            stop = start + size
            if listener is None or stop + len(_CRLF) > len(data):
                return at
            head = data[start : start + head_size]
            if has_head and not head.startswith(HEADER_LINE):
                return at  # a status: the library knows how to read it
            reply = words[3].decode() if len(words) == (6 if has_head else 5) else ""
            payload = data[start + head_size : stop]
            at = stop + len(_CRLF)
            stats["in_msgs"] += 1
            stats["in_bytes"] += len(payload)
            listener(HeardMsg(self._client, int(words[2]), words[1].decode(), reply, payload, head))
