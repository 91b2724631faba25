"""Frames over a socket pair between parent and child: four bytes of length, then JSON.

The rank reads and writes with plain blocking calls between steps (`Channel`); agent and front use asyncio
(`AsyncChannel`).
"""

import asyncio
import contextlib
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

_LENGTH = struct.Struct("<I")
MAX_FRAME = 256 << 20  # a 64k-token prompt is 0.5 MB; anything near this is a fault
_BUFFER = 4 << 20
_READ = 256 << 10  # bytes taken at a time


class ChannelClosed(Exception):
    """The other side is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair with large buffers, so that a step's frame never waits for a busy front."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    return ours, theirs


def frame(payload: bytes) -> bytes:
    """The payload with its length before it. Raises ValueError over MAX_FRAME bytes."""
    if len(payload) > MAX_FRAME:
        raise ValueError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(payload)) + payload


def _cut(buffer: bytearray) -> list[bytes]:
    """Take every whole frame out of the buffer."""
    frames, at = [], 0
    while len(buffer) - at >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer, at)
        end = at + _LENGTH.size + length
        if len(buffer) < end:
            break
        frames.append(bytes(buffer[at + _LENGTH.size : end]))
        at = end
    del buffer[:at]
    return frames


class Channel:
    """The blocking end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._buffer = bytearray()
        self._incoming = memoryview(bytearray(_READ))  # made once: that much new memory costs more than reading

    @classmethod
    def from_fd(cls, fd: int) -> "Channel":
        """The end that was inherited as file descriptor `fd`."""
        return cls(socket.socket(fileno=fd))

    def send(self, payload: bytes) -> None:
        """Send one frame. Raises ChannelClosed."""
        try:
            self._sock.sendall(frame(payload))
        except (BrokenPipeError, ConnectionError) as error:
            raise ChannelClosed from error

    def receive(self, timeout_s: float | None = 0.0) -> list[bytes]:
        """Every frame that is there; waits up to `timeout_s` (None: for ever) for the first. Raises ChannelClosed."""
        frames = _cut(self._buffer)
        wait = 0.0 if frames else timeout_s
        while select.select([self._sock], [], [], wait)[0]:
            try:
                size = self._sock.recv_into(self._incoming)
            except ConnectionError as error:
                raise ChannelClosed from error
            if not size:
                if frames:
                    break  # the last words first; the next call tells the end
                raise ChannelClosed
            self._buffer += self._incoming[:size]
            frames += _cut(self._buffer)
            wait = 0.0 if frames else None  # part of a frame is here: the rest follows
        return frames

    def close(self) -> None:
        """Close; may be called twice."""
        self._sock.close()


class AsyncChannel(asyncio.Protocol):
    """The asyncio end. One reads at a time: with `receive`, or with `serve`, which spares each frame a task's turn."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames: deque[bytes] = deque()
        self._listener: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._fault: Exception | None = None  # of the listener
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, sock: socket.socket) -> "AsyncChannel":
        """The end `sock` of a socket pair."""
        sock.setblocking(False)
        _, made = await asyncio.get_running_loop().create_connection(cls, sock=sock)
        return made

    def send(self, payload: bytes) -> None:
        """Send one frame. When the other side is gone, nothing happens: reading tells the end."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(payload))

    async def receive(self) -> bytes:
        """The next frame. Raises ChannelClosed when the other side is gone."""
        while not self._frames:
            await self._turn()
        return self._frames.popleft()

    async def serve(self, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with each frame as soon as it is read, until the other side is gone.

        Raises what the listener raises; it then gets no more frames.
        """
        self._listener = listener
        try:
            self._hand_over()
            while self._fault is None and not (self._closed.is_set() and not self._frames):
                with contextlib.suppress(ChannelClosed):
                    await self._turn()
        finally:
            self._listener = None
            fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def close(self) -> None:
        """Send what was given and close; may be called twice."""
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Return when it is closed."""
        await self._closed.wait()

    async def _turn(self) -> None:
        """Wait for something to happen. Raises ChannelClosed if nothing can."""
        if self._closed.is_set():
            raise ChannelClosed
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _hand_over(self) -> None:
        while self._frames and self._listener is not None and self._fault is None:
            try:
                self._listener(self._frames.popleft())
            except Exception as error:
                self._fault = error
                self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- what the event loop calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is none by name

    def data_received(self, data: bytes) -> None:
        """Bytes came: whole frames, mostly one."""
        self._buffer += data
        self._frames.extend(_cut(self._buffer))
        if self._listener is not None:
            self._hand_over()
        elif self._frames:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone, or we closed."""
        self._closed.set()
        self._wake()
