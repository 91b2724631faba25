"""Stored responses: a bucket that every gateway reads, with a lifetime and a size (see `shared.topology`).

A record holds the whole conversation up to its end, so that it stands alone: what is deleted or expired before it
takes nothing from it. Values are compressed JSON, each one message of the bus.
"""

import asyncio
import re
import zlib
from typing import Any

import msgspec

from gateway.dialects.openai_responses_input import Past, reference_of
from gateway.errors import ApiError, InvalidRequest, NotFound, Unavailable
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError, WrongRevision
from shared.kv import Bucket

MAX_REFERENCED = 64  # responses that the items of one request refer to
MAX_STORED = 64 << 20  # bytes of a record, unpacked
MARGIN_BYTES = 1 << 20  # of a message, left for the answer and the headers
FINAL = frozenset(("completed", "incomplete", "failed", "cancelled"))
_THREAD_BYTES = 1 << 18  # above, packing is done beside the event loop
_ITEM = re.compile(r"[a-z]{1,8}_([A-Za-z0-9_-]{22})_i?[0-9]{1,6}")
_RESPONSE = re.compile(r"resp_[A-Za-z0-9_-]{22}")

log = logs.get(__name__)


class Stored(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One response with its conversation."""

    response: dict[str, Any]
    items: list[dict[str, Any]] = []  # its input
    past: list[dict[str, Any]] = []  # of the responses before it, oldest first
    gateway: str = ""  # that works on it, while it is not final
    has_events: bool = False  # they are kept, to be streamed again
    revision: int = 0  # of the record as it was read; never written
    v: int = 1

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """What a response after this one goes on from."""
        return [*self.past, *self.items, *self.response["output"]]


class TooLargeToStore(ApiError):
    """The conversation does not fit a message of the bus. Remedy: send less, or store: false."""

    status = 413
    kind = "too_large_to_store"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"The conversation has {size} bytes, and a stored response may have {limit}; send store: false, or less.",
            param="store",
        )
        self.size = size
        self.limit = limit


class Superseded(Exception):
    """The response was deleted, or another gateway has ended it: nothing was written. No client hears of this."""

    def __init__(self, identifier: str, *, is_gone: bool = False) -> None:
        super().__init__(f"the response {identifier} was changed or deleted by another")
        self.is_gone = is_gone  # deleted or expired, as far as was looked


class Owned:
    """The record of a response under way, which the gateway that works on it alone may change, until it is final.

    It is written only over what that gateway wrote before: a response that was deleted stays deleted, and one that
    another gateway has declared failed, because this one could not be heard, stays failed.
    """

    def __init__(self, store: "Store", record: Stored) -> None:
        self._store = store
        self.record = record

    @property
    def id(self) -> str:
        """The response's."""
        return str(self.record.response["id"])

    def forget_conversation(self) -> None:
        """Keep the response alone: with all that was before, it is too large."""
        self.record.items, self.record.past = [], []

    async def put(self, response: dict[str, Any]) -> None:
        """Store the response in place of what was there. Raises Superseded, TooLargeToStore, Unavailable."""
        self.record.response = response
        try:
            await self._store.put(self.record, is_guarded=True)
        except Superseded:
            found = await self._store.get(self.id)
            if found is None or found.gateway != self.record.gateway or found.response["status"] in FINAL:
                raise Superseded(self.id, is_gone=found is None) from None
            self.record.revision = found.revision  # an earlier write of ours arrived, and its answer did not
            await self._store.put(self.record, is_guarded=True)


class Store:
    """Reads and writes stored responses. Methods raise Unavailable when the bus cannot be reached."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, names.RESPONSES)

    async def get(self, identifier: str) -> Stored | None:
        """A response by its id; None when it was never stored, was deleted, or has expired."""
        if not _RESPONSE.fullmatch(identifier):
            return None
        try:
            found = await self._bucket.get(identifier)
        except BusError as error:
            raise _unreachable(error) from error
        if found is None:
            return None
        data, revision = found
        record = await asyncio.to_thread(_unpack, data) if len(data) > _THREAD_BYTES else _unpack(data)
        record.revision = revision
        return record

    async def require(self, identifier: str, param: str = "response_id") -> Stored:
        """A response by its id. Raises NotFound."""
        found = await self.get(identifier)
        if found is None:
            what = "Previous response" if param == "previous_response_id" else "Response"
            raise NotFound(
                f"{what} with id {identifier[:80]!r} not found: it was not stored, was deleted, or has expired.",
                param=param,
                code="previous_response_not_found" if param == "previous_response_id" else "not_found",
            )
        return found

    async def put(self, record: Stored, *, is_guarded: bool = False) -> None:
        """Keep a response; when guarded, only if it is still at the record's revision, which then is the new one.

        Raises TooLargeToStore, and Superseded when the guard held it back.
        """
        plain = msgspec.json.encode(msgspec.structs.replace(record, revision=0))
        data = await asyncio.to_thread(_pack, plain) if len(plain) > _THREAD_BYTES else _pack(plain)
        if len(data) > self._limit:
            raise TooLargeToStore(len(data), self._limit)
        identifier = record.response["id"]
        try:
            if is_guarded:
                record.revision = await self._bucket.update(identifier, data, record.revision)
            else:
                await self._bucket.put(identifier, data)
        except WrongRevision:
            raise Superseded(identifier) from None
        except BusError as error:
            raise _unreachable(error) from error

    async def delete(self, identifier: str) -> None:
        """Forget a response."""
        try:
            await self._bucket.delete(identifier)
        except BusError as error:
            raise _unreachable(error) from error

    async def past_of(self, body: dict[str, Any]) -> Past:
        """What the store knows for a request: the conversation before it, and the items that it refers to.

        Raises NotFound, and InvalidRequest for a response that is not there yet.
        """
        past = Past()
        previous = body.get("previous_response_id")
        if isinstance(previous, str):
            record = await self.require(previous, "previous_response_id")
            if record.response["status"] not in ("completed", "incomplete"):
                raise InvalidRequest(
                    f"The response {previous!r} is {record.response['status']}, so nothing can follow it.",
                    param="previous_response_id",
                )
            past = Past(record.conversation)
        elif previous is not None:
            raise InvalidRequest("previous_response_id must be a string.", param="previous_response_id")
        given = body.get("input")
        wanted = {reference_of(item) for item in given} - {None} if isinstance(given, list) else set()
        if not wanted:
            return past
        owners = {match[1] for one in wanted if (match := _ITEM.fullmatch(one or ""))}
        if len(owners) > MAX_REFERENCED:
            raise InvalidRequest(f"input refers to items of more than {MAX_REFERENCED} responses.", param="input")
        found: dict[str, dict[str, Any]] = {}
        for owner in owners:
            if (record_of := await self.get(f"resp_{owner}")) is not None:
                found |= {one["id"]: one for one in record_of.conversation if isinstance(one.get("id"), str)}
        return Past(past.items, found)

    def check_room(self, num_bytes: int) -> None:
        """Raises TooLargeToStore for a conversation that would surely not fit once its answer is there."""
        if num_bytes > self._limit - MARGIN_BYTES:
            raise TooLargeToStore(num_bytes, self._limit - MARGIN_BYTES)

    @property
    def _limit(self) -> int:
        return self._bus.max_payload - 4096


def _pack(plain: bytes) -> bytes:
    return zlib.compress(plain, 1)


def _unpack(data: bytes) -> Stored:
    return msgspec.json.decode(zlib.decompressobj().decompress(data, MAX_STORED), type=Stored)


def _unreachable(error: BusError) -> Unavailable:
    log.warning("store.unreachable", error=str(error))
    return Unavailable("Stored responses cannot be reached at the moment; retry in 5 s.")
