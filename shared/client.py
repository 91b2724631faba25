"""nats-py's client with its measured defects guarded. Only `shared.bus` uses it.

Written against nats-py 2.16; each override says what goes wrong without it.
"""

import asyncio
from typing import Any

import nats.errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.subscription import Subscription

from shared.short_way import HEADER_LINE, Listener, ShortWay

CLOSE_S = 3.0  # for the peer to take what is still to be sent
DIRECT_BYTES = 256 << 10  # unsent in the socket's buffer; above, the library's flusher waits for the socket

_SPACE = " \t\r\n\v\f"


class GuardedClient(Client):  # type: ignore[misc]
    """A client whose read loop survives late answers to pings, and whose flush means what it says.

    It can also send without waiting (`send`) and hand messages over as they arrive (`listen`): the library's own way
    through two tasks and two queues costs each message of a hop a tenth of a millisecond more.
    """

    _pending: list[bytes]
    _pending_data_size: int

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Listener] = {}  # by subscription id

    @property
    def has_room(self) -> bool:
        """Is there a connection that takes more at once?"""
        socket = self._socket
        if self._status != Client.CONNECTED or socket is None or socket.is_closing():
            return False
        return socket.get_write_buffer_size() < DIRECT_BYTES

    @property
    def _socket(self) -> asyncio.Transport | None:
        writer: Any = getattr(self._transport, "_io_writer", None)  # a WebSocket has none
        return None if writer is None else writer.transport

    @property
    def _is_lost(self) -> bool:
        """Is the socket closed, and the read loop has yet to notice? uvloop raises RuntimeError for each write then."""
        socket = self._socket
        return socket is not None and socket.is_closing()

    def send(self, command: bytes) -> None:
        """Give the connection one whole command, without waiting: to the socket, or to what waits for one.

        Raises nats.errors.OutboundBufferLimitError when too much waits already.
        """
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(command)
        if self.has_room:
            writer = self._transport._io_writer
            if self._pending:
                self._pending.append(command)
                writer.writelines(self._pending)
                self._pending, self._pending_data_size = [], 0
            else:
                writer.write(command)
            return
        if self._pending_data_size + len(command) > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self.is_connected and not self._is_lost and self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    async def listen(self, subject: str, queue: str, listener: Listener) -> Subscription:
        """Subscribe with a listener that is called as soon as bytes are read: it must be quick, and must not raise."""
        sid = self._sid + 1  # which subscribe takes before it first waits
        self._listeners[sid] = listener
        try:
            return await self.subscribe(subject, queue=queue)
        except BaseException:
            if sid not in self._subs:
                self._listeners.pop(sid, None)  # the next subscription gets this id
            raise

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        listener = self._listeners.get(sid)
        if listener is None or sid not in self._subs:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        found = await self._process_headers(headers) if headers else None
        listener(self._build_message(sid, subject, reply, data, found))

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # The original looks at each character of each name by itself: a third of the calls that bring a job in.
        headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            name = name.strip(_SPACE)
            if colon and name.isascii() and name.split() == [name]:
                headers[name] = value.strip(_SPACE)
        return headers

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        if max_msgs == 0:
            self._listeners.pop(sid, None)

    async def _process_pong(self) -> None:
        # The original sets a result without looking. When the waiting flush() or rtt() has timed out, that raises
        # inside the read loop: nothing is read any more, and is_connected stays true.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # The original writes the PING to the socket at once, before the commands that still wait in the buffer. The
        # answer then says nothing about them: a flush after subscribe returned before the server had the SUB.
        if future is None:
            future = asyncio.get_running_loop().create_future()
        self._pongs.append(future)
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # Without its flusher the original writes by itself, to a lost socket too. What waits leaves after a reconnect.
        if self.is_connected and self._is_lost:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return await super()._flush_pending(force_flush)

    def _abort(self) -> None:
        if (socket := self._socket) is not None:
            socket.abort()

    async def _attempt_reconnect(self) -> None:
        # The original closes the lost connection in order: it waits until a peer that may be frozen has taken all that
        # was written, without end, and with TLS until it has said goodbye, 30 s.
        self._abort()
        await super()._attempt_reconnect()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # The original waits for a frozen peer here too, without end.
        patience = asyncio.get_running_loop().call_later(CLOSE_S, self._abort)
        try:
            await super()._close(status, do_cbs)
        finally:
            patience.cancel()

    async def _process_connect_init(self) -> None:
        # A PING that was buffered for the lost connection would have its PONG taken for that of a later one.
        kept = [command for command in self._pending if command is not PING_PROTO]
        self._pending_data_size -= len(PING_PROTO) * (len(self._pending) - len(kept))
        self._pending = kept
        await super()._process_connect_init()
        reader = getattr(self._transport, "_io_reader", None)  # a WebSocket has none
        if reader is not None:
            ShortWay(self, reader, self._listeners)

    @property
    def is_stuck(self) -> bool:
        """Does it believe to be connected, or to be connecting, with nobody left who reads or tries?"""
        if self.is_closed:
            return False
        if self.is_connected:
            return self._reading_task is None or self._reading_task.done()
        return self._reconnection_task is not None and self._reconnection_task.done()

    @property
    def server_version(self) -> tuple[int, int]:
        """(major, minor) of the server; (0, 0) before the first connection."""
        try:
            major, minor = str(self._server_info.get("version", "")).split(".")[:2]
            return int(major), int(minor)
        except ValueError:
            return 0, 0


def header_block(headers: dict[str, str] | None) -> bytes:
    """Headers as the server reads them, which count as part of a message. Raises ValueError for a line break in one."""
    if not headers:
        return b""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers):
        raise ValueError(f"a header holds a line break: {headers!r}")
    return HEADER_LINE + lines.encode() + b"\r\n"


def publish_command(subject: str, reply: str, payload: bytes, head: bytes = b"") -> bytes:
    """A message as the server reads it, `head` of `header_block`; subjects must be checked before."""
    if not head:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
    size = len(head) + len(payload)
    return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject.encode(), reply.encode(), len(head), size, head, payload)
