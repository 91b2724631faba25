"""Exactly one of many leads: a key that expires, renewed by compare-and-set.

The holder writes the key with a lifetime and renews it each second. When it dies, the key expires and one of the
others creates it anew. Each holder has an `epoch`, a fencing number above that of every holder before: whoever obeys
the leader refuses a lower one, so that a leader which was deposed without noticing does no harm. And it does notice:
`held` is measured against the holder's own monotonic clock, from the moment *before* the last successful renewal was
sent, and is false before the server lets anybody else in.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Self

import msgspec

from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError, WrongRevision
from shared.kv import Bucket, is_gone
from shared.messages import encode
from shared.records import LEASE_RENEW_S, LEASE_TTL_S, LeaseRecord

RETRY_S = 0.2  # after a failed request
MARGIN_S = 0.5  # a holder stops this long before its key may expire

log = logs.get(__name__)
_decode = msgspec.json.Decoder(LeaseRecord).decode


class Lease:
    """A standing candidacy for the lease at `key` of the fleet bucket, from `async with` to its end."""

    def __init__(
        self,
        bus: Bus,
        key: str,
        holder: str,
        *,
        ttl_s: int = LEASE_TTL_S,
        renew_s: float = LEASE_RENEW_S,
    ) -> None:
        if ttl_s - MARGIN_S <= renew_s:
            raise ValueError(f"a lease of {ttl_s} s cannot be renewed each {renew_s} s")
        self.key = key
        self.holder = holder
        self._bus = bus
        self._bucket = Bucket(bus, names.FLEET)
        self._ttl_s = ttl_s
        self._renew_s = renew_s
        self._epoch = 0
        self._above = 0
        self._revision = 0  # of our own last write; 0: not held
        self._valid_until = 0.0  # monotonic
        self._told = False
        self._callbacks: list[Callable[[bool], None]] = []
        self._turned = asyncio.Event()
        self._stir = asyncio.Event()  # somebody else changed the key: look at it now
        self._failed = False
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None

    @property
    def held(self) -> bool:
        """Do we lead at this very moment?"""
        return self._revision > 0 and time.monotonic() < self._valid_until

    @property
    def epoch(self) -> int:
        """Our fencing number; 0 when not held."""
        return self._epoch if self.held else 0

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Call this with `held` whenever it turned. It must not block; exceptions are logged."""
        self._callbacks.append(callback)

    async def wait_held(self, timeout_s: float | None = None) -> int:
        """Return our epoch as soon as we lead. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self.held:
                self._turned.clear()
                await self._turned.wait()
        return self._epoch

    def rise_above(self, epoch: int) -> None:
        """Lead under a number above this one, which somebody obeys: else he would never obey us.

        Only whoever wrote a record by hand, or a store that was lost and made anew under a clock that is behind,
        brings that about.
        """
        self._above = max(self._above, epoch)
        self._stir.set()

    async def __aenter__(self) -> Self:
        event = f"{names.bucket_events(names.FLEET)}.{self.key}"
        self._subscription = await self._bus.subscribe(event, self._on_event)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the candidacy; a held lease is given back, so that another takes it at once. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        if self._revision:
            revision = self._revision
            self._lose()
            with contextlib.suppress(BusError):
                await self._bucket.delete(self.key, revision)

    # --- the candidacy ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._stir.clear()
            self._failed = False
            try:
                # The request may take its time while the lease runs out: it ends with the lease.
                async with asyncio.timeout(self._valid_until - time.monotonic() if self._revision else None):
                    await (self._renew() if self._revision else self._acquire())
            except (BusError, TimeoutError) as error:
                self._failed = True
                log.warning("lease.unreachable", key=self.key, holder=self.holder, error=str(error))
            except Exception:  # a candidacy that ends unseen would leave the fleet without a leader
                self._failed = True
                log.exception("lease.failed", key=self.key, holder=self.holder)
            if self._revision and not self.held:
                self._lose()
            await self._rest()

    async def _rest(self) -> None:
        """Until it is time to renew or to try again, and no longer than the lease is ours."""
        pause = RETRY_S if self._failed else self._renew_s
        if self._revision:
            pause = min(pause, self._valid_until - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._stir.wait()
        if self._revision and not self.held:
            self._lose()

    async def _renew(self) -> None:
        sent = time.monotonic()
        self._epoch = max(self._epoch, self._above + 1)
        try:
            self._revision = await self._bucket.update(self.key, self._record(), self._revision, self._ttl_s)
        except WrongRevision:
            await self._recover()
            return
        self._valid_until = sent + self._ttl_s - MARGIN_S

    async def _recover(self) -> None:
        """Our key has another revision: an earlier renewal arrived without our hearing of it, or we are deposed."""
        found = await self._bucket.get(self.key)
        if found is not None and self._is_ours(found[0]):
            # The next renewal, soon, tells for how long.
            self._revision = found[1]
            self._failed = True
        else:
            self._lose()

    async def _acquire(self) -> None:
        value, revision = await self._bucket.last(self.key)
        if value is not None:
            return  # held; also when it is by an attempt of our own whose answer was lost: that expires
        if revision:
            epoch = revision + 1
        else:
            # Even the mark of the last expiry is gone. The stream's last revision is above all that ever were.
            info = await self._bus.api(f"STREAM.INFO.{names.bucket_stream(names.FLEET)}", {})
            epoch = int(info["state"]["last_seq"]) + 1
        sent = time.monotonic()
        self._epoch = max(epoch, self._above + 1)
        with contextlib.suppress(WrongRevision):  # another was faster
            self._revision = await self._bucket.update(self.key, self._record(), revision, self._ttl_s)
            self._valid_until = sent + self._ttl_s - MARGIN_S
            log.info("lease.held", key=self.key, holder=self.holder, epoch=self._epoch)
            self._tell()

    def _is_ours(self, value: bytes) -> bool:
        try:
            return _decode(value) == LeaseRecord(holder=self.holder, epoch=self._epoch)
        except msgspec.MsgspecError:
            return False

    def _record(self) -> bytes:
        return encode(LeaseRecord(holder=self.holder, epoch=self._epoch))

    def _lose(self) -> None:
        if self._revision:
            log.warning("lease.lost", key=self.key, holder=self.holder, epoch=self._epoch)
        self._revision = 0
        self._valid_until = 0.0
        self._tell()

    def _tell(self) -> None:
        if self.held == self._told:
            return
        self._told = self.held
        self._turned.set()
        for callback in self._callbacks:
            try:
                callback(self._told)
            except Exception:
                log.exception("lease.callback_failed", key=self.key)

    async def _on_event(self, message: Msg) -> None:
        headers: dict[str, str] = message.headers or {}
        if is_gone(headers) or (self._revision and not self._is_ours(message.data)):
            self._stir.set()
