"""Tiny images of each format that is taken, as the bytes of a file and in every wire shape."""

import base64
import struct
import zlib
from typing import Any


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 2, height: int = 2, rgb: tuple[int, int, int] = (255, 0, 0)) -> bytes:
    """A picture of one colour that any reader of PNG takes."""
    row = b"\0" + bytes(rgb) * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(row * height))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + body + _chunk(b"IEND", b"")


# The beginnings are true, the rest is none: enough for whoever does not decode them.
FILES = {
    "image/png": png(),
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(40),
    "image/webp": b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(40),
    "image/gif": b"GIF89a\x01\x00\x01\x00" + bytes(40),
}


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def uri(media_type: str = "image/png", data: bytes | None = None) -> str:
    """A data: URI."""
    return f"data:{media_type};base64,{encoded(FILES[media_type] if data is None else data)}"


def neutral(media_type: str = "image/png", data: bytes | None = None) -> dict[str, Any]:
    """The part that every wire shape becomes."""
    data = FILES[media_type] if data is None else data
    return {"type": "image", "media_type": media_type, "data": encoded(data)}


def chat_part(media_type: str = "image/png", data: bytes | None = None) -> dict[str, Any]:
    """As chat has it."""
    return {"type": "image_url", "image_url": {"url": uri(media_type, data)}}


def block(media_type: str = "image/png", data: bytes | None = None) -> dict[str, Any]:
    """As messages has it."""
    source = {"type": "base64", "media_type": media_type, "data": neutral(media_type, data)["data"]}
    return {"type": "image", "source": source}


def input_part(media_type: str = "image/png", data: bytes | None = None) -> dict[str, Any]:
    """As responses has it."""
    return {"type": "input_image", "image_url": uri(media_type, data)}
