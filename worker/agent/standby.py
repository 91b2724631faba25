"""A spare replica: a front and its rank, both started, everything imported, nothing configured, no device touched.

A load takes it and saves the seconds that starting them costs; the next is made when the host has been quiet for a
while. Front and rank are each other's parent and child as always, so whatever ends a replica ends a spare.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from shared.log import get
from worker.agent.errors import FrontFailed
from worker.agent.front_process import FrontProcess

log = get(__name__)

QUIET_S = 5.0  # from the end of a load to the start of the next spare
_LOOK_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Standby:
    """At most one spare at a time. `run` keeps it, `take` gives it away."""

    def __init__(self, command: Sequence[str], is_loading: Callable[[], bool], *, quiet_s: float = QUIET_S) -> None:
        self._command = [*command, "--warm"]
        self._is_loading = is_loading
        self._quiet_s = quiet_s
        self._spare: FrontProcess | None = None
        self._taken = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process id of the spare front; 0 while there is none."""
        return self._spare.pid if self._spare is not None else 0

    def take(self) -> FrontProcess | None:
        """The spare if there is one, warm or on its way to it; whoever takes it ends it."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._taken.set()
        return spare

    async def run(self) -> None:
        """Have a spare, for ever. The one that is there at the end ends too."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            if pause_s:
                await self._quiet()
            try:
                await self._keep_one()
                pause_s = self._quiet_s
            except FrontFailed as error:
                pause_s = min(max(1.0, 2 * pause_s), _LONGEST_PAUSE_S)
                log.warning("standby.failed", reason=str(error), retry_in_s=pause_s)

    async def _keep_one(self) -> None:
        """From the start of a spare until it is taken. Raises FrontFailed if it ends by itself."""
        self._taken.clear()
        async with contextlib.AsyncExitStack() as stack:
            front = self._spare = await stack.enter_async_context(FrontProcess(self._command))
            ending = asyncio.ensure_future(_watch(front))
            taken = asyncio.ensure_future(self._taken.wait())
            try:
                await asyncio.wait({ending, taken}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._spare = None
                for task in (ending, taken):
                    task.cancel()
                await asyncio.wait({ending, taken})
                if self._taken.is_set():
                    stack.pop_all()
            if not self._taken.is_set():
                await ending

    async def _quiet(self) -> None:
        while self._is_loading():  # noqa: ASYNC110  (a load ends in many ways, and nothing is urgent here)
            await asyncio.sleep(_LOOK_S)


async def _watch(front: FrontProcess) -> None:
    """Tell when it is warm. Raises FrontFailed when it has ended."""
    await front.warm()
    log.info("standby.ready", pid=front.pid)
    await front.ended()
    raise FrontFailed("the spare front ended")
