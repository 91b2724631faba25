"""Images inside a body, brought to the one neutral part ``{"type": "image", "media_type", "data"}``.

Equal images must become equal parts whatever API they came by, so the base64 is canonical and the media type is the
one that the file's first bytes say. An image is never fetched: a gateway that loads what strangers name can be sent
anywhere. No refusal repeats any of an image's data, for refusals are logged.

The text is looked at once: every character by one pass of `bytes.translate`, and decoded are only its ends.
"""

import binascii
from typing import Any

from gateway.dialects import fields
from gateway.dialects.fields import bad
from gateway.errors import InvalidRequest, NotSupported

MAX_IMAGES = 100  # of one request
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
DETAILS = ("auto", "low", "high", "original")
_ALIASES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACES = b" \t\r\n\f\v"
_MAX_SHOWN = 32  # characters of a strange media type; longer ones may be the data
_MAX_HEADER = 256  # characters of a data URI before its comma
_HEAD = 16  # characters that hold the 12 bytes which tell the formats apart
_REMEDY = "send the image inline, as base64"

Part = dict[str, Any]


class Images:
    """The images of one request, in their order. `places` are their paths in the body."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def of_url(self, url: object, where: str, place: str) -> Part:
        """The part of a ``data:`` URI at the path `where`, inside the part at `place`.

        Raises InvalidRequest and NotSupported that name `where`.
        """
        if not isinstance(url, str) or not url:
            raise bad(where, "is required: a data: URI with the image in base64")
        scheme = url[:16].partition(":")[0].lower()
        if scheme != "data":
            what = f"{scheme} addresses" if scheme in ("http", "https", "file", "ftp") else "addresses"
            raise NotSupported(f"{where}: {what} are not fetched: {_REMEDY} in a data: URI.", param=where)
        comma = url.find(",", 0, _MAX_HEADER)
        if comma < 0:
            raise bad(where, "must be a data: URI, such as data:image/png;base64,…")
        media_type, *options = url[5:comma].split(";")
        if "base64" not in [option.strip().lower() for option in options]:
            raise bad(where, "must be a data: URI in base64, such as data:image/png;base64,…")
        return self.of_data(_unquoted(url[comma + 1 :]), media_type, where, where, place)

    def of_data(self, data: object, media_type: object, at_data: str, at_type: str, place: str) -> Part:
        """The part of base64 text at the path `at_data`, of a media type at `at_type`, inside the part at `place`."""
        if not isinstance(media_type, str):
            raise bad(at_type, f"is required: one of {', '.join(MEDIA_TYPES)}")
        named = media_type.strip().lower()
        named = _ALIASES.get(named, named)
        if named not in MEDIA_TYPES:
            shown = named if len(named) <= _MAX_SHOWN else "something long"
            raise bad(at_type, f"must be one of {', '.join(MEDIA_TYPES)}", shown)
        if not isinstance(data, str) or not data:
            raise bad(at_data, "must not be empty: the image in base64")
        data = _canonical(data, at_data)
        found = _format(data)
        if found is None:
            raise bad(at_data, "is no image that can be read: its first bytes are of no PNG, JPEG, WebP or GIF")
        if found != named:
            raise InvalidRequest(f"{at_type} says {named}, and the data is {found}; name it so.", param=at_type)
        self._count(place)
        return {"type": "image", "media_type": found, "data": data}

    def _count(self, place: str) -> None:
        if len(self.places) >= MAX_IMAGES:
            raise bad(place, f"is one image too many: a request may have {MAX_IMAGES}")
        self.places.append(place)


def no_file(where: str, what: str = "files by id") -> NotSupported:
    """The refusal of an image that lies somewhere else."""
    return NotSupported(f"{where}: {what} are not kept here: {_REMEDY}.", param=where)


def no_place(where: str, role: str) -> InvalidRequest:
    """The refusal of an image in a message that models take none in."""
    return InvalidRequest(
        f"{where}: a message of the role {role} cannot hold images: send them in a user message or a tool result.",
        param=where,
    )


def check_detail(part: dict[str, Any], path: str, dropped: list[str]) -> None:
    """The wish for a level of detail, which has no effect: a model sees an image as its own processor scales it."""
    detail = fields.string(part, "detail", path)
    if detail is None:
        return
    if detail not in DETAILS:
        raise bad(f"{path}detail", f"must be one of {', '.join(DETAILS)}")
    dropped.append(f"{path}detail")


def _unquoted(data: str) -> str:
    """What may stand percent-encoded in a data: URI of base64, in one pass each however much of it there is."""
    if "%" not in data:
        return data
    for code, character in (("%2B", "+"), ("%2F", "/"), ("%3D", "="), ("%0A", ""), ("%0D", "")):
        data = data.replace(code, character).replace(code.lower(), character)
    return data


def _canonical(data: str, where: str) -> str:
    """Base64 as its encoder would write it: no line breaks, padded, no stray bits. Raises InvalidRequest."""
    try:
        strange = data.encode("ascii").translate(None, _ALPHABET)
    except UnicodeEncodeError:
        raise _no_base64(where) from None
    if strange.translate(None, b"=" + _SPACES):
        raise _no_base64(where)
    if strange.strip(b"="):
        data = data.encode().translate(None, _SPACES).decode()
        strange = strange.translate(None, _SPACES)
    padding = strange.decode()
    if not data.endswith(padding):
        raise _no_base64(where)
    num_characters = len(data) - len(padding)
    if num_characters % 4 == 1 or len(padding) > 2 or num_characters == 0:
        raise _no_base64(where)
    if not padding:
        data += "=" * (-num_characters % 4)
    elif len(data) % 4:
        raise _no_base64(where)
    end = data[-4:]
    clean = binascii.b2a_base64(binascii.a2b_base64(end), newline=False).decode()
    return data if clean == end else data[:-4] + clean


def _no_base64(where: str) -> InvalidRequest:
    return bad(where, "is not base64: letters, digits, + and /, padded with =")


def _format(data: str) -> str | None:
    """The media type that the first bytes of a file say."""
    head = binascii.a2b_base64(data[:_HEAD])
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if head[:6] in (b"GIF87a", b"GIF89a") else None
