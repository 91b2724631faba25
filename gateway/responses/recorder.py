"""Keeps the events of a response while it runs: in runs, a few times a second, and no more than a bound of them."""

import asyncio
import contextlib

from gateway.errors import ApiError
from gateway.responses.events import EventLog, Run
from gateway.responses.store import Superseded
from shared import log as logs
from shared.errors import PayloadTooLarge

PACE_S = 0.05  # between two runs; the first goes at once
MAX_BYTES = 32 << 20  # of events of one response; of those beyond only the last is kept
AGAIN_S = 0.5
PATIENCE_S = 30.0  # for the last run, while the bus is away

log = logs.get(__name__)


class Recorder:
    """The writer of one response's events. `run` is a task of its owner's; `finish` ends it."""

    def __init__(self, events: EventLog, response: str, max_bytes: int = MAX_BYTES) -> None:
        self._events = events
        self._response = response
        self._room = max_bytes
        self._frames: list[bytes] = []  # that wait
        self._first = 0  # sequence number of the first that waits
        self._number = 0  # of the next run
        self._moved = asyncio.Event()
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()
        self.is_void = False  # another has ended the response

    def add(self, first: int, frames: bytes) -> None:
        """Events with their sequence numbers from `first` on, each the one after what was added before."""
        self._room -= len(frames)
        if self._room < 0 or not frames:
            return
        if not self._frames:
            self._first = first
        self._frames.append(frames)
        self._moved.set()

    async def run(self) -> None:
        """Write what was added until `finish`, or until another has ended the response."""
        try:
            while not self._ending.is_set() and not self.is_void:
                await self._moved.wait()
                if self._ending.is_set():
                    return
                await self._write(is_last=False)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PACE_S):
                        await self._ending.wait()
        finally:
            self._ended.set()

    async def finish(self, first: int, frames: bytes) -> None:
        """Add the last events, and write all that waits. What cannot be written followers find in the record."""
        self._room = max(self._room, 0) + len(frames)
        if self._frames and self._first + sum(one.count(b"\n\n") for one in self._frames) != first:
            await self.stop()
            await self._write(is_last=False)  # of those between, there was no room for
        self.add(first, frames)
        await self.stop()
        await self._write(is_last=True)

    async def stop(self) -> None:
        """Write no more. May be called twice."""
        self._ending.set()
        self._moved.set()
        await self._ended.wait()

    async def forget(self) -> None:
        """Take away what was written. Raises Unavailable."""
        await self._events.forget(self._response)

    async def _write(self, *, is_last: bool) -> None:
        self._moved.clear()
        frames, self._frames = self._frames, []
        if not frames or self.is_void:
            return
        run = Run(self._first, b"".join(frames).decode(), is_last, self._number)
        self._number += 1
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while loop.time() < until:
            try:
                await self._events.append(self._response, run)
                return
            except Superseded:
                self.is_void = True
                return
            except PayloadTooLarge as error:
                log.warning("events.too_large", response=self._response, size=error.size)
                return
            except ApiError:
                await asyncio.sleep(AGAIN_S)
        log.warning("events.unwritten", response=self._response, number=run.number)
