"""Whose share of a replica a request takes: a short hash of its API key, so that keys take turns and none is shown."""

import hashlib
from collections.abc import Mapping

BYTES = 8  # enough to tell keys apart, and from which none can be found again


def share_of(headers: Mapping[str, str]) -> str:
    """The share of whoever sent these headers (names in lower case); empty without a key: its gateway's share.

    OpenAI's clients send ``Authorization: Bearer …``, Anthropic's either that or ``x-api-key``.
    """
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    key = key or headers.get("x-api-key", "").strip()
    return hashlib.blake2b(key.encode(), digest_size=BYTES).hexdigest() if key else ""
