"""An HTTP body to a JSON object: size, encoding and syntax, each with an error that says what is wrong and where."""

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Receive

from gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

_LARGE_BYTES = 1 << 20
_DIAGNOSED_BYTES = 1 << 20  # larger broken bodies are refused without naming the field


class ClientGone(Exception):
    """The client left before its body was complete: there is nobody to answer."""


async def read(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as more than `limit` bytes are known, ClientGone on a disconnect."""
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(int(announced), limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(size, limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def read_object(receive: Receive, headers: Mapping[str, str], limit: int) -> tuple[dict[str, Any], int]:
    """The JSON object in the body, and its bytes. As `read` and `decode`; others have their turn in between."""
    raw = await read(receive, headers, limit)
    if len(raw) < _LARGE_BYTES:
        return decode(raw), len(raw)
    await asyncio.sleep(0)  # each step of 32 MB takes a tenth of a second
    body = decode(raw)
    await asyncio.sleep(0)
    return body, len(raw)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises UnsupportedMediaType for a body that is not plain JSON.

    A missing or foreign content type is refused because a browser may send one across origins without asking.
    """
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        shown = f"content-type {media!r}" if media else "no content-type"
        raise UnsupportedMediaType(f"The request has {shown}; send JSON with content-type: application/json.")
    charset = headers.get("content-type", "").lower().partition("charset=")[2].partition(";")[0].strip(' "')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"The body's charset is {charset!r}; send UTF-8.")
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"The body has content-encoding {encoding!r}; send it uncompressed.")


def decode(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidRequest that names the place, and the field where there is one."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _diagnose(body, error) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, and this is {kind_of(value)}.", code="invalid_json")
    return value


def kind_of(value: object) -> str:
    """The JSON type of a value, in words for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _diagnose(body: bytes, error: orjson.JSONDecodeError) -> InvalidRequest:
    """Numbers and strings that only look like JSON (NaN, 1e999, a lone surrogate) can name their field."""
    if len(body) <= _DIAGNOSED_BYTES:
        try:
            found = _offender(json.loads(body), "")
        except (ValueError, RecursionError):
            found = None
        if found:
            path, what = found
            return InvalidRequest(f"{path or 'The body'} {what}.", param=path or None, code="invalid_json")
    return InvalidRequest(f"The body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
                          code="invalid_json")  # fmt: skip


def _offender(value: object, path: str) -> tuple[str, str] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return path, "must be a finite number"
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return path, "holds a lone surrogate, which is no Unicode text"
    if isinstance(value, list):
        for index, item in enumerate(value):
            if found := _offender(item, f"{path}[{index}]"):
                return found
    if isinstance(value, dict):
        for key, item in value.items():
            name = key if key.isprintable() and key.isascii() else "?"
            if found := _offender(key, path) or _offender(item, f"{path}.{name}" if path else name):
                return found
    return None
