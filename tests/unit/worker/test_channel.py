"""Frames over a socket pair: whole, in order, and an end that is noticed."""

import asyncio
import socket
import struct
import threading

import pytest

from worker import channel
from worker.channel import MAX_FRAME, AsyncChannel, Channel, ChannelClosed


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
    line = await AsyncChannel.open(ends[0])
    other = Channel(ends[1])
    line.send(b"down")
    await asyncio.sleep(0)
    assert other.receive(None) == [b"down"]
    other.send(b"up")
    assert await line.receive() == b"up"
    ends[1].sendall(struct.pack("<I", 10) + b"half")
    ends[1].close()
    with pytest.raises(ChannelClosed):
        await line.receive()
    line.send(b"nobody hears it")
    line.close()
    await line.wait_closed()


async def test_a_listener_gets_what_came_before_it_and_what_comes_then(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    line = await AsyncChannel.open(ends[0])
    whole = channel.frame(b"one") + channel.frame(b"two") + channel.frame(b"three")
    heard: list[bytes] = []
    ends[1].sendall(whole[:9])
    assert await line.receive() == b"one"
    ends[1].sendall(whole[9:13])  # the first bytes of the second frame
    serving = asyncio.create_task(line.serve(heard.append))
    await asyncio.sleep(0)
    ends[1].sendall(whole[13:])
    ends[1].close()
    await serving
    assert heard == [b"two", b"three"]


async def test_what_a_listener_raises_ends_its_service_and_loses_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    line = await AsyncChannel.open(ends[0])

    def refuse(frame: bytes) -> None:
        raise ValueError(frame)

    ends[1].sendall(channel.frame(b"bad") + channel.frame(b"next"))
    with pytest.raises(ValueError, match="bad"):
        await line.serve(refuse)
    assert await line.receive() == b"next"
    line.close()
    await line.wait_closed()


async def test_a_service_that_is_cancelled_leaves_the_rest_to_the_next_reader(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    line = await AsyncChannel.open(ends[0])
    heard: list[bytes] = []
    serving = asyncio.create_task(line.serve(heard.append))
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait({serving})
    ends[1].sendall(channel.frame(b"later"))
    assert await line.receive() == b"later"
    assert heard == []
    line.close()
    await line.wait_closed()
