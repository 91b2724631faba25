"""Images of a prompt: decoded to be sure of them, measured, named by their contents. The pixels stay here.

Whoever computes them gets the file. What no reader could make an image of never reaches it: every limit is checked
from the file's header first, then the whole file is read once. Equal files are read once.
"""

import base64
import binascii
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from worker.text.errors import PromptError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_IMAGES = 100  # of a prompt
MAX_BYTES = 20 << 20  # of a file
MAX_PIXELS = 50_000_000  # of an image; a phone's largest photographs have fewer
MAX_PROMPT_PIXELS = 200_000_000  # of all images of a prompt
_ORIENTATION = 0x0112  # in a photograph's EXIF data: from 5 on it lies on its side
_PART = 1 << 18  # characters of base64 that are decoded at once; a multiple of four
_MAX_KNOWN = 4096  # images whose sizes are remembered


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that can be read: its file, the name of its contents, its size upright."""

    data: bytes
    digest: bytes
    width: int
    height: int


class PictureReader:
    """Reads the image parts of prompts. May be used from several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def read_all(self, parts: list[tuple[str, dict[str, Any]]]) -> list[Picture]:
        """The pictures of these parts, each with its place. Raises `PromptError`: which is at fault, and why."""
        count = len(parts)
        if count > MAX_IMAGES:
            raise PromptError(f"The messages have {count} images; {MAX_IMAGES} is the limit.", "messages")
        pictures: list[Picture] = []
        left = MAX_PROMPT_PIXELS
        for place, part in parts:
            try:
                picture = self._read(part.get("data"), left)
            except _Unreadable as error:
                raise PromptError(f"{place}: the image {error}.", place) from error
            left -= picture.width * picture.height
            pictures.append(picture)
        return pictures

    def _read(self, text: Any, left: int) -> Picture:
        data = _decode(text)
        digest = blake2b(data, digest_size=32).digest()
        with self._lock:
            size = self._known.get(digest)
        if size is None:
            size = _measure(data)
            with self._lock:
                self._known[digest] = size
                if len(self._known) > _MAX_KNOWN:
                    self._known.popitem(last=False)
        if size[0] * size[1] > left:
            raise _Unreadable(f"is one too many: all images together may have {MAX_PROMPT_PIXELS} pixels")
        return Picture(data, digest, *size)


class _Unreadable(Exception):
    """Goes on from the words `the image`."""


def _decode(text: Any) -> bytes:
    if not isinstance(text, str) or not text:
        raise _Unreadable("has no data")
    if len(text) * 3 // 4 > MAX_BYTES + 2:
        raise _Unreadable(f"is a file of more than {MAX_BYTES >> 20} MB; send a smaller one")
    if "=" in text[:-2]:
        raise _Unreadable("is not valid base64")
    parts = range(0, len(text), _PART)
    try:  # in parts, because the interpreter is nobody else's while one is decoded
        return b"".join([base64.b64decode(text[at : at + _PART], validate=True) for at in parts])
    except (binascii.Error, ValueError) as error:
        raise _Unreadable("is not valid base64") from error


def _measure(data: bytes) -> tuple[int, int]:
    """Width and height as it is looked at."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # the library only warns, and much later
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _Unreadable(f"has {width} × {height} pixels; {MAX_PIXELS} in all are the limit")
            image.draft(None, (width // 8, height // 8))  # a JPEG is read in full, but made small
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except UnidentifiedImageError as error:
        raise _Unreadable(f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from error
    except _Unreadable:
        raise
    except Exception as error:  # damaged files make the library fail in many ways
        raise _Unreadable(f"cannot be read, it is damaged or cut short ({_first_line(error)})") from error
    return (height, width) if turned else (width, height)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
