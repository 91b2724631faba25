"""Frames over a socket pair: whole, in order, and an end that is noticed."""

import socket
import struct
import threading

import pytest

from worker import channel
from worker.channel import MAX_FRAME, Channel, ChannelClosed, open_channel, read_frame


@pytest.fixture
def ends() -> object:
    left, right = channel.pair()
    yield left, right
    left.close()
    right.close()


def test_frames_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    left, right = Channel(ends[0]), Channel(ends[1])
    for payload in (b"", b"one", bytes(300_000)):
        left.send(payload)
    received: list[bytes] = []
    while len(received) < 3:
        received += right.receive(None)
    assert received == [b"", b"one", bytes(300_000)]
    assert right.receive(0.0) == []


def test_a_frame_in_pieces_is_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    raw = channel.frame(b"in two pieces")
    ends[0].sendall(raw[:6])
    rest = threading.Timer(0.05, ends[0].sendall, [raw[6:]])
    rest.start()
    assert Channel(ends[1]).receive(0.0) == [b"in two pieces"]
    rest.join()


def test_a_frame_larger_than_the_buffers(ends: tuple[socket.socket, socket.socket]) -> None:
    payload = bytes(20 << 20)
    sender = threading.Thread(target=Channel(ends[0]).send, args=[payload])
    sender.start()
    assert Channel(ends[1]).receive(None) == [payload]
    sender.join()


def test_both_ways_of_ending_are_noticed(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()
    with pytest.raises(ChannelClosed):
        Channel(ends[1]).receive(None)
    with pytest.raises(ChannelClosed):
        Channel(ends[1]).send(b"x" * (16 << 20))


def test_the_last_words_are_heard_before_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(channel.frame(b"whole") + channel.frame(b"half")[:5])
    ends[0].close()
    reader = Channel(ends[1])
    assert reader.receive(None) == [b"whole"]
    with pytest.raises(ChannelClosed):
        reader.receive(None)


def test_a_frame_over_the_limit_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return MAX_FRAME + 1

    with pytest.raises(ValueError, match="over the limit"):
        channel.frame(Long())


async def test_the_asyncio_end_speaks_the_same(ends: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = await open_channel(ends[0])
    other = Channel(ends[1])
    writer.write(channel.frame(b"down"))
    await writer.drain()
    assert other.receive(None) == [b"down"]
    other.send(b"up")
    assert await read_frame(reader) == b"up"
    ends[1].sendall(struct.pack("<I", 10) + b"half")
    ends[1].close()
    with pytest.raises(ChannelClosed):
        await read_frame(reader)
    writer.close()
