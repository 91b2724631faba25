"""Counts of tokens: asked on the bus, answered by a process beside the agent.

The process is started with the first question, because most hosts are never asked, and again when it has ended. The
agent itself only passes bytes on.
"""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType

from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.log import get
from shared.messages import Counted, encode
from shared.settings import SourceSettings
from worker.channel import ChannelClosed
from worker.child import Child

COUNTER = (sys.executable, "-m", "worker.counter")
MAX_OPEN = 512  # questions at once
NUMBER_BYTES = 4
TRIES = 2  # a process that ends between two questions may take one along

log = get(__name__)
_BUSY = encode(Counted(problem="unavailable", message="this worker has too many counts to do; ask again"))
_FAILED = encode(Counted(problem="unavailable", message="the counting process of this worker ended; see its log"))


class Counting:
    """`async with` listens; the process, if there is one, ends with it."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        command: Sequence[str] = COUNTER,
        mirrors: Mapping[str, SourceSettings] | None = None,
    ) -> None:
        self._bus = bus
        self._config = encode({name: one.model_dump() for name, one in (mirrors or {}).items()})
        self._worker = worker
        self._command = command
        self._numbers = itertools.count()
        self._open: dict[bytes, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._child: Child | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> "Counting":
        self._subscriptions = [
            await self._bus.subscribe(names.COUNT, self._on_message, queue=names.COUNT_QUEUE),
            await self._bus.subscribe(names.worker_count(self._worker), self._on_message),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._child is not None:
            await self._child.end()
            self._child = None

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            return
        if len(self._tasks) >= MAX_OPEN:
            await message.respond(_BUSY)
            return
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Msg) -> None:
        answer = _FAILED
        for _ in range(TRIES):
            try:
                answer = await self._ask(message.data)
                break
            except (ChannelClosed, OSError) as error:
                log.warning("counter.lost", error=str(error))
        with contextlib.suppress(Exception):  # the bus may be gone, and with it whoever asked
            await message.respond(answer)

    async def _ask(self, payload: bytes) -> bytes:
        """The answer of the process. Raises ChannelClosed when it ends without one."""
        async with self._starting:
            if self._child is None:
                child = self._child = await Child.start(self._command)
                child.send(self._config)
                self._reading = asyncio.create_task(self._read(child))
        number = (next(self._numbers) & 0xFFFFFFFF).to_bytes(NUMBER_BYTES, "little")
        future = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            self._child.send(number + payload)
            return await future
        finally:
            del self._open[number]

    async def _read(self, child: Child) -> None:
        """Its answers, to its end."""
        try:
            while True:
                frame = await child.line.receive()
                waiting = self._open.get(frame[:NUMBER_BYTES])
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame[NUMBER_BYTES:])
        except ChannelClosed:
            self._child = None
            for waiting in self._open.values():
                if not waiting.done():
                    waiting.set_exception(ChannelClosed("the counting process ended"))
            await child.end()
