"""Bodies of strangers: what is no JSON object, and where it stops being one."""

from collections.abc import Iterable

import pytest
from starlette.types import Message

from gateway.body import ClientGone, check_headers, decode, read
from gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"hello", None, "not valid JSON"),
        (b"\xff\xfe{}", None, "not valid JSON"),
        (b'{"a": "\x00"}', None, "not valid JSON"),
        (b"[" * 5000 + b"]" * 5000, None, "not valid JSON"),
        (b"[]", None, "must be a JSON object, and this is an array"),
        (b'"x"', None, "must be a JSON object, and this is a string"),
        (b"null", None, "must be a JSON object, and this is null"),
        (b"12", None, "must be a JSON object, and this is a number"),
        (b'{"temperature": NaN}', "temperature", "finite"),
        (b'{"temperature": 1e999}', "temperature", "finite"),
        (b'{"a": {"b": [1, -Infinity]}}', "a.b[1]", "finite"),
        (b'{"messages": [{"content": "\\ud800"}]}', "messages[0].content", "lone surrogate"),
        (b'{"\\udc00": 1}', None, "lone surrogate"),
    ],
)
def test_what_is_no_json_object_is_refused_by_name(body: bytes, param: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(body)
    assert refused.value.param == param
    assert words in refused.value.message


def test_a_position_is_named_in_broken_json() -> None:
    with pytest.raises(InvalidRequest, match=r"line 2, column \d"):
        decode(b'{"a": 1,\n "b" 2}')


def test_a_large_broken_body_is_refused_without_a_second_look() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(b'{"a": "' + b"x" * (1 << 20) + b'", "b": NaN}')
    assert refused.value.param is None


def test_an_object_is_returned() -> None:
    assert decode('{"a": "\U0001f600\\u0000"}'.encode()) == {"a": "\U0001f600\0"}


@pytest.mark.parametrize("media", ["application/json", "application/json; charset=UTF-8", "application/vnd.x+json"])
def test_json_is_taken(media: str) -> None:
    check_headers({"content-type": media, "content-encoding": "identity"})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/json; charset=utf-16"},
        JSON | {"content-encoding": "gzip"},
    ],
)
def test_other_content_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_headers(headers)


class Received:
    """A body that arrives in these pieces."""

    def __init__(self, pieces: Iterable[bytes], *, ends: bool = True) -> None:
        self.messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        self.messages.append({"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"})

    async def __call__(self) -> Message:
        return self.messages.pop(0)


async def test_a_body_is_read_in_pieces() -> None:
    assert await read(Received([b"ab", b"cd"]), {}, limit=4) == b"abcd"


async def test_a_body_over_the_limit_is_refused_while_it_comes() -> None:
    received = Received([b"ab", b"cd", b"ef", b"gh"])
    with pytest.raises(BodyTooLarge) as refused:
        await read(received, {}, limit=5)
    assert (refused.value.size, refused.value.limit) == (6, 5)
    assert len(received.messages) == 2  # the rest was not read


async def test_an_announced_size_over_the_limit_is_refused_before_reading() -> None:
    received = Received([b"ab"])
    with pytest.raises(BodyTooLarge, match="999 bytes or more, and this gateway takes at most 5"):
        await read(received, {"content-length": "999"}, limit=5)
    assert len(received.messages) == 2


async def test_a_client_that_leaves_while_sending_is_gone() -> None:
    with pytest.raises(ClientGone):
        await read(Received([b"ab"], ends=False), {}, limit=5)
