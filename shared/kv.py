"""Keys of a bucket, each by one request.

Written against the server's own interface because the library cannot give a put a lifetime, takes an expired key for
present, and cannot create it again.
"""

from typing import Any

from shared import names
from shared.bus import Bus, publish_ack, ttl_header
from shared.errors import ApiError, WrongRevision

TIMEOUT_S = 2.0
DELETED_S = 60  # how long the fleet bucket remembers that a key was deleted

_WRONG_REVISION = (10071, 10164)


class Bucket:
    """A key-value bucket. Requests raise BusTimeout, BusUnavailable or NoResponders as `Bus.request` does."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.name = name
        self._bus = bus

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Set a key and return its revision. With `ttl_s` (whole seconds, at least 1) it expires by itself."""
        return await self._write(key, value, ttl_s=ttl_s)

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Set a key that must be absent: never written, deleted or expired. Raises WrongRevision."""
        try:
            return await self._write(key, value, ttl_s=ttl_s, revision=0)
        except WrongRevision:
            data, revision = await self.last(key)
            if data is not None:
                raise WrongRevision(key, 0) from None
            # What is left is the mark of a deletion or expiry: nobody else may have come in between.
            return await self._write(key, value, ttl_s=ttl_s, revision=revision)

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        """Set a key that must still be at this revision. Raises WrongRevision."""
        return await self._write(key, value, ttl_s=ttl_s, revision=revision)

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """(value, revision), or None for an absent, deleted or expired key."""
        data, revision = await self.last(key)
        return None if data is None else (data, revision)

    async def last(self, key: str) -> tuple[bytes | None, int]:
        """(value, revision) of the last thing that happened to a key.

        The value is None for a deletion or expiry; (None, 0) when nothing is known of the key.
        """
        stream = names.bucket_stream(self.name)
        subject = f"$JS.API.DIRECT.GET.{stream}.{names.kv_subject(self.name, key)}"
        message = await self._bus.request_message(subject, b"", timeout_s=TIMEOUT_S)
        headers: dict[str, str] = message.headers or {}
        if headers.get(names.STATUS) == "404":
            return None, 0
        if names.SEQUENCE not in headers:
            raise ApiError(subject, int(headers.get(names.STATUS, 0)), 0, headers.get("Description", "no message"))
        return (None if is_gone(headers) else bytes(message.data)), int(headers[names.SEQUENCE])

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove a key, if it is still at `revision` when that is given (raises WrongRevision). Absent is fine."""
        # In the fleet bucket the note of a deletion expires: its keys are random ids, and would pile up.
        ttl_s = DELETED_S if self.name == names.FLEET else None
        await self._write(key, b"", ttl_s=ttl_s, revision=revision, headers={names.KV_OPERATION: "DEL"})

    async def _write(
        self,
        key: str,
        value: bytes,
        *,
        ttl_s: float | None,
        revision: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        headers = dict(headers or {})
        if ttl_s is not None:
            headers[names.MSG_TTL] = ttl_header(ttl_s)
        if revision is not None:
            headers[names.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(revision)
        subject = names.kv_subject(self.name, key)
        message = await self._bus.request_message(subject, value, timeout_s=TIMEOUT_S, headers=headers or None)
        ack = publish_ack(subject, message)
        if ack.error is None:
            return ack.seq
        if ack.error.err_code in _WRONG_REVISION:
            raise WrongRevision(key, revision or 0)
        raise ApiError(subject, ack.error.code, ack.error.err_code, ack.error.description)


def is_gone(headers: dict[str, Any]) -> bool:
    """Do these headers of a bucket's message say that the key was deleted, purged or has expired?"""
    return names.KV_OPERATION in headers or names.MARKER_REASON in headers
