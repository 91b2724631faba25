"""Reasoning inside a string that clients keep and send back without reading it.

Anthropic calls such a string a signature, OpenAI encrypted content. Here it hides nothing and signs nothing: it lets a
client that was shown no reasoning return it all the same, so that the next turn can see it. Strings of other servers
come back as well, from conversations that began there; they hold nothing for us, and are no error.
"""

import base64
import binascii
import hashlib
import zlib

MAX_CHARACTERS = 4 << 20  # of reasoning in one string
_FULL = "plexus-r1."
_SHORT = "plexus-s1."


def wrap(text: str) -> str:
    """A string that holds `text`."""
    return _FULL + base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()


def mark(text: str) -> str:
    """A short string for a `text` that the client has anyway."""
    return _SHORT + base64.urlsafe_b64encode(hashlib.blake2b(text.encode(), digest_size=18).digest()).decode()


def unwrap(value: str) -> str | None:
    """The text in a string that `wrap` made; None for any other."""
    if not value.startswith(_FULL):
        return None
    try:
        packed = base64.b64decode(value.removeprefix(_FULL), altchars=b"-_", validate=True)
        inflater = zlib.decompressobj()
        data = inflater.decompress(packed, MAX_CHARACTERS)
        return data.decode() if inflater.eof else None
    except (binascii.Error, zlib.error, ValueError):
        return None
