"""Frames over a socket pair between parent and child: four bytes of length, then JSON.

The rank reads and writes with plain blocking calls between steps (`Channel`); agent and front use asyncio
(`open_channel` gives the usual stream pair, `read_frame` and `frame` do the framing).
"""

import asyncio
import select
import socket
import struct

_LENGTH = struct.Struct("<I")
MAX_FRAME = 256 << 20  # a 64k-token prompt is 0.5 MB; anything near this is a fault
_BUFFER = 4 << 20


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


class Channel:
    """The blocking end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._buffer = bytearray()

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
        frames = self._frames()
        wait = 0.0 if frames else timeout_s
        while select.select([self._sock], [], [], wait)[0]:
            try:
                data = self._sock.recv(1 << 20)
            except ConnectionError as error:
                raise ChannelClosed from error
            if not data:
                if frames:
                    break  # the last words first; the next call tells the end
                raise ChannelClosed
            self._buffer += data
            frames += self._frames()
            wait = 0.0 if frames else None  # part of a frame is here: the rest follows
        return frames

    def close(self) -> None:
        """Close; may be called twice."""
        self._sock.close()

    def _frames(self) -> list[bytes]:
        frames, at = [], 0
        while len(self._buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            end = at + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[at + _LENGTH.size : end]))
            at = end
        del self._buffer[:at]
        return frames


async def open_channel(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The asyncio end of a socket pair."""
    sock.setblocking(False)
    return await asyncio.open_connection(sock=sock, limit=_BUFFER)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame. Raises ChannelClosed when the other side is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ChannelClosed from error
