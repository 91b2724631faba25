"""A front as its agent sees it: started with a configuration, tells its status, ends when told or on its own."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence

from shared.process import is_running
from worker import protocol
from worker.agent.errors import FrontFailed
from worker.channel import ChannelClosed
from worker.child import Child
from worker.protocol import Drain, FrontConfig, FrontStatus

FRONT = (sys.executable, "-m", "worker.front")
END_S = 5.0  # from the end of its channel to the end of its process, and from there to that of its ranks
GONE_POLL_S = 0.01
WARM = "warm"  # the stage of a front without configuration whose rank has imported everything
WARMING_S = 300.0  # for imports that leave the cores to others
SILENCE_S = 30.0  # a front speaks every few seconds; one that does not is frozen, and its gateways have given it up


class FrontProcess:
    """`async with` starts it, unless it runs, and ends it. After `configure`, iterate over it for its statuses until it
    has ended.
    """

    def __init__(self, command: Sequence[str] = FRONT) -> None:
        self._command = command
        self._child: Child | None = None
        self._ranks: set[int] = set()  # their process ids, as last told
        self._reading = asyncio.Lock()  # who kept a spare may read for a moment yet when a load has taken it
        self.status: int | None = None  # of its exit

    async def __aenter__(self) -> "FrontProcess":
        if self._child is None:
            self._child = await Child.start(self._command)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._child is not None
        self.status = await self._child.end()
        await self._ranks_gone()

    async def _ranks_gone(self) -> None:
        """A rank ends with its front, but a moment later, and holds its memory until then."""
        until = time.monotonic() + END_S
        while any(map(is_running, self._ranks)) and time.monotonic() < until:  # noqa: ASYNC110  (not our children)
            await asyncio.sleep(GONE_POLL_S)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid if self._child is not None else 0

    async def warm(self) -> None:
        """Return when it has a rank that has imported everything. Raises FrontFailed if it ends before."""
        with contextlib.suppress(ChannelClosed):
            while (await self._next(WARMING_S)).stage != WARM:
                pass
            return
        raise FrontFailed("the spare front ended before it was warm")

    async def ended(self) -> None:
        """Return when it has ended."""
        assert self._child is not None
        await self._child.wait()

    def configure(self, config: FrontConfig) -> None:
        """Tell it which replica it is; once."""
        if self._child is not None:
            self._child.send(protocol.encode(config))

    def drain(self, grace_s: float) -> None:
        """Let it finish what runs, then end."""
        if self._child is not None:
            self._child.send(protocol.encode(Drain(grace_s)))

    async def __aiter__(self) -> AsyncIterator[FrontStatus]:
        assert self._child is not None
        while True:
            try:
                status = await self._next(SILENCE_S)
            except ChannelClosed:
                break
            yield status
        self.status = await self._child.end(END_S)

    async def _next(self, patience_s: float) -> FrontStatus:
        assert self._child is not None
        try:
            async with asyncio.timeout(patience_s), self._reading:
                frame = await self._child.line.receive()
        except TimeoutError:
            raise FrontFailed(f"the front said nothing for {patience_s:g} s") from None
        status = protocol.decode_front_to_agent(frame)
        self._ranks = {pid for pid in status.pids if pid != self.pid} or self._ranks
        return status
