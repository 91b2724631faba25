"""Messages that reach their listeners past nats-py's reader, and those that must not."""

import asyncio
import random
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from shared.client import GuardedClient
from shared.short_way import HeardMsg, ShortWay

HEARD, SUBSCRIBED = 1, 2
HEAD = b"NATS/1.0\r\nNats-Msg-Id: j1\r\nX: a: b\r\n\r\n"
STATUS = b"NATS/1.0 503\r\n\r\n"
LINES = [
    b"MSG a.b 1 5\r\nfirst\r\n",
    b"MSG a.b 1 reply.to 6\r\nsecond\r\n",
    b"PING\r\n",
    b"HMSG a.b 1 reply.to %d %d\r\n%sthird\r\n" % (len(HEAD), len(HEAD) + 5, HEAD),
    b"MSG other 2 6\r\nfourth\r\n",
    b"HMSG a.b 1 %d %d\r\n%sfifth\r\n" % (len(HEAD), len(HEAD) + 5, HEAD),
    b"HMSG a.b 1 %d %d\r\n%s\r\n" % (len(STATUS), len(STATUS), STATUS),
    b"MSG nobody 3 7\r\nignored\r\n",
    b"MSG a.b 1 0\r\n\r\n",
    b"MSG a.b 1 reply 15\r\nMSG a.b 1 0\r\n\r\n\r\n",  # what it holds looks like one
    b"+OK\r\n",
    b"MSG a.b 1 4\r\nlast\r\n",
]
IDS = {"Nats-Msg-Id": "j1", "X": "a: b"}
EXPECTED: list[tuple[int, str, bytes, dict[str, str] | None]] = [
    (HEARD, "", b"first", None),
    (HEARD, "reply.to", b"second", None),
    (HEARD, "reply.to", b"third", IDS),
    (SUBSCRIBED, "", b"fourth", None),
    (HEARD, "", b"fifth", IDS),
    (HEARD, "", b"", {"Status": "503"}),
    (HEARD, "", b"", None),
    (HEARD, "reply", b"MSG a.b 1 0\r\n\r\n", None),
    (HEARD, "", b"last", None),
]


class Transport:
    """What the library asks of one: a reader."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._io_reader = reader

    def at_eof(self) -> bool:
        return self._io_reader.at_eof()

    async def read(self, size: int) -> bytes:
        return await self._io_reader.read(size)


class Recording(GuardedClient):
    """A client whose read loop runs, over a reader that a test feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[int, str, bytes, dict[str, str] | None]] = []
        self.pings = 0
        self.by_library = 0
        self.reader = asyncio.StreamReader()
        self._transport = Transport(self.reader)
        self._ps = Parser(self)
        for sid in (HEARD, SUBSCRIBED):
            self._subs[sid] = Subscription(self, sid, "subject")
        self._listeners[HEARD] = lambda message: self.note(HEARD, message)
        ShortWay(self, self.reader, self._listeners)

    def note(self, sid: int, message: Msg) -> None:
        self.got.append((sid, message.reply, message.data, message.headers))

    async def _process_ping(self) -> None:
        self.pings += 1

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.by_library += 1
        if sid == SUBSCRIBED:
            self.got.append((sid, reply.decode(), data, None))
        else:
            await super()._process_msg(sid, subject, reply, data, headers)


async def feed(client: Recording, pieces: list[bytes], *, waits: bool) -> None:
    reading = asyncio.create_task(client._read_loop())
    await asyncio.sleep(0)
    for piece in pieces:
        client.reader.feed_data(piece)
        for _ in range(4 if waits else 0):
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    reading.cancel()


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 64, 10_000])
async def test_pieces_of_any_size_bring_the_same_in_the_same_order(size: int, waits: bool) -> None:
    client, data = Recording(), b"".join(LINES)
    await feed(client, [data[at : at + size] for at in range(0, len(data), size)], waits=waits)
    assert client.got == EXPECTED
    assert client.pings == 1
    others = 1  # which nobody subscribed to
    assert client.stats["in_msgs"] == sum(sid == HEARD for sid, *_ in EXPECTED) + others


@pytest.mark.parametrize("seed", range(30))
async def test_pieces_of_all_sizes_together(seed: int) -> None:
    chance, client, data = random.Random(seed), Recording(), b"".join(LINES)
    cuts = sorted(chance.sample(range(1, len(data)), chance.randint(1, 30)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    await feed(client, pieces, waits=bool(seed % 2))
    assert client.got == EXPECTED


async def test_whole_messages_do_not_pass_through_the_library() -> None:
    client = Recording()
    await feed(client, LINES[:2], waits=True)
    assert [data for _, _, data, _ in client.got] == [b"first", b"second"]
    assert client.by_library == 0
    await feed(client, [LINES[4]], waits=True)
    assert client.by_library == 1


async def test_who_has_unsubscribed_hears_nothing() -> None:
    client = Recording()

    def leave(message: Msg) -> None:
        client.note(HEARD, message)
        client._remove_sub(HEARD)

    client._listeners[HEARD] = leave
    await feed(client, [LINES[0] + LINES[1] + LINES[3]], waits=True)
    assert [data for _, _, data, _ in client.got] == [b"first"]


def test_a_message_without_headers_says_so() -> None:
    message: Any = HeardMsg(None, 1, "a", "", b"x", b"")
    assert message.headers is None
    assert message.data == b"x"
