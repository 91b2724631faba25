"""A live copy of a bucket in memory.

Changes come by a plain subscription on the subjects under which the server republishes the bucket; a snapshot by
batched direct gets fills in what was there before, what was missed in a gap, and what happened during an outage. The
library's own watcher is blind for 17 to 20 seconds after a server restart; this is right again within tens of
milliseconds.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import msgspec

from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import ApiError, BusError
from shared.kv import is_gone

SNAPSHOT_S = 30.0  # taken also without cause, against anything unforeseen
RETRY_S = 0.05
REPLY_S = 1.0
MAX_KEYS = 1024  # in one batched get; the server refuses more
CHUNK_KEYS = 512

T = TypeVar("T")
log = logs.get(__name__)


class _TooManyKeys(Exception):
    """The server wants the keys asked for in smaller portions."""


class _Behind(BusError):
    """A follower answered that has not yet got everything."""


class Mirror(Generic[T]):
    """What a bucket holds now. `decode` turns a key's value into T, or None to leave the key out."""

    def __init__(self, bus: Bus, bucket: str, decode: Callable[[str, bytes], T | None]) -> None:
        self.bucket = bucket
        self.num_snapshots = 0
        self.refused: dict[str, str] = {}  # keys whose latest value `decode` did not take, and why
        self._bus = bus
        self._decode = decode
        self._stream = names.bucket_stream(bucket)
        self._events = f"{names.bucket_events(bucket)}."
        self._values: dict[str, T] = {}
        self._revisions: dict[str, int] = {}  # of every key heard of, also of absent ones until the next snapshot
        self._seen = 0  # everything up to this revision is accounted for
        self._last_event = 0
        self._callbacks: list[Callable[[str, T | None], None]] = []
        self._on_refusal: list[Callable[[str, str], None]] = []
        self._waiters: set[asyncio.Event] = set()
        self._wanted = asyncio.Event()  # a snapshot is
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None  # the reconnect callback

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Return when the copy is complete; waits as long as the bucket is not there."""
        self._subscription = await self._bus.subscribe(f"{self._events}>", self._on_event)
        self._forget = self._bus.on_reconnect(self._on_reconnect)
        await self._snapshot_until_done()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop following. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._forget is not None:
            self._forget()
            self._forget = None
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def get(self, key: str) -> T | None:
        """The value of a key; None if absent."""
        return self._values.get(key)

    def items(self) -> dict[str, T]:
        """Every key and value, as a copy."""
        return dict(self._values)

    def revision(self, key: str) -> int:
        """The revision at which a key was last seen; 0 if never."""
        return self._revisions.get(key, 0)

    def on_change(self, callback: Callable[[str, T | None], None]) -> None:
        """Call this with (key, value) after each change; the value is None when the key is gone. It must not block."""
        self._callbacks.append(callback)

    def on_refusal(self, callback: Callable[[str, str], None]) -> None:
        """Call this with (key, reason) when a value comes that is not understood. It must not block."""
        self._on_refusal.append(callback)

    async def wait_for(self, predicate: Callable[["Mirror[T]"], Any], timeout_s: float) -> None:
        """Return as soon as `predicate(self)` is true; it is tried after each change. Raises TimeoutError."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self):
                    await changed.wait()
                    changed.clear()
        finally:
            self._waiters.discard(changed)

    # --- following --------------------------------------------------------------------------------------------

    async def _on_event(self, message: Msg) -> None:
        headers: dict[str, str] = message.headers or {}
        sequence = int(headers.get(names.SEQUENCE, 0))
        if not sequence:
            return
        if sequence > self._seen + 1 or sequence <= self._last_event:
            self._wanted.set()  # a gap, or a stream that began anew
        self._last_event = sequence
        self._seen = max(self._seen, sequence)
        self._apply(message.subject[len(self._events) :], sequence, headers, bytes(message.data))

    async def _on_reconnect(self) -> None:
        self._wanted.set()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_S):
                    await self._wanted.wait()
            try:
                await self._snapshot_until_done()
            except Exception:  # nobody else would take the next one
                log.exception("mirror.snapshot_failed", bucket=self.bucket)

    def _apply(self, key: str, revision: int, headers: dict[str, str], data: bytes) -> None:
        if revision <= self._revisions.get(key, 0):
            return
        self._revisions[key] = revision
        value: T | None = None
        self.refused.pop(key, None)
        if not is_gone(headers):
            try:
                value = self._decode(key, data)
            except Exception as error:
                self._refuse(key, str(error))
        self._set(key, value)

    def _refuse(self, key: str, reason: str) -> None:
        log.warning("mirror.undecodable", bucket=self.bucket, key=key, error=reason)
        self.refused[key] = reason
        for callback in self._on_refusal:
            try:
                callback(key, reason)
            except Exception:
                log.exception("mirror.callback_failed", bucket=self.bucket, key=key)

    def _set(self, key: str, value: T | None) -> None:
        if value is None:
            if self._values.pop(key, None) is None:
                return
        else:
            if self._values.get(key) == value:
                return
            self._values[key] = value
        for callback in self._callbacks:
            try:
                callback(key, value)
            except Exception:
                log.exception("mirror.callback_failed", bucket=self.bucket, key=key)
        for waiter in self._waiters:
            waiter.set()

    # --- snapshots --------------------------------------------------------------------------------------------

    async def _snapshot_until_done(self) -> None:
        warned = time.monotonic()
        while True:
            self._wanted.clear()
            try:
                await self._snapshot()
                return
            except (BusError, TimeoutError, msgspec.MsgspecError, LookupError, ValueError) as error:
                if time.monotonic() - warned > 5:
                    warned = time.monotonic()
                    log.warning("mirror.waiting", bucket=self.bucket, error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _snapshot(self) -> None:
        everything = f"$KV.{self.bucket}.>"
        info = await self._bus.api(f"STREAM.INFO.{self._stream}", {})
        last = int(info["state"]["last_seq"])
        if last < self._seen:
            # The store was lost and the stream made anew with lower revisions: what was known of them is void.
            log.warning("mirror.reset", bucket=self.bucket, seen=self._seen, last=last)
            self._seen = self._last_event = last
            self._revisions = dict.fromkeys(self._revisions, 0)
        try:
            present = await self._fetch([everything], last)
        except _TooManyKeys:
            present = set()
            subjects = await self._subjects(everything)
            for at in range(0, len(subjects), CHUNK_KEYS):
                present |= await self._fetch(subjects[at : at + CHUNK_KEYS], last)
        for key in [key for key in self._revisions if key not in present and self._revisions[key] <= last]:
            del self._revisions[key]
            self.refused.pop(key, None)
            self._set(key, None)
        self._seen = max(self._seen, last)
        self.num_snapshots += 1

    async def _subjects(self, pattern: str) -> list[str]:
        subjects: list[str] = []
        while True:
            answer = await self._bus.api(
                f"STREAM.INFO.{self._stream}", {"subjects_filter": pattern, "offset": len(subjects)}, timeout_s=5.0
            )
            page = list(answer["state"].get("subjects") or {})
            subjects += page
            if not page or len(subjects) >= int(answer.get("total", 0)):
                return subjects

    async def _fetch(self, subjects: list[str], last: int) -> set[str]:
        """Apply the last message of every subject, and return the keys. The answer must go up to revision `last`."""
        keys: set[str] = set()
        messages: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe(inbox, messages.put)
        request = msgspec.json.encode({"multi_last": subjects, "batch": MAX_KEYS})
        try:
            await self._bus.publish(f"$JS.API.DIRECT.GET.{self._stream}", request, reply=inbox)
            while True:
                async with asyncio.timeout(REPLY_S):
                    message = await messages.get()
                headers: dict[str, str] = message.headers or {}
                status = headers.get(names.STATUS)
                if status is None:
                    key = names.kv_key(headers[names.SUBJECT])
                    keys.add(key)
                    self._apply(key, int(headers[names.SEQUENCE]), headers, bytes(message.data))
                elif status == "404":
                    return keys
                elif status == "204":
                    if int(headers.get(names.UP_TO_SEQUENCE, last)) < last:
                        raise _Behind(f"the server that answered for {self._stream} is behind")
                    return keys
                elif status == "413":
                    raise _TooManyKeys
                else:
                    raise ApiError(self._stream, int(status), 0, headers.get("Description", "no snapshot"))
        finally:
            await subscription.unsubscribe()
