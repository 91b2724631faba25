"""Background work with an owner: nothing runs that nobody awaits, and no failure goes unheard."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from shared import log as logs

log = logs.get(__name__)


class Tasks:
    """A set of tasks that ends with its owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run `work`; an exception of it is logged as `what` having failed."""
        task = asyncio.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def settle(self, timeout_s: float) -> None:
        """Wait for what runs, but no longer than this."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def close(self) -> None:
        """Cancel and await everything. May be called twice."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=task.get_name(), error=f"{type(error).__name__}: {error}")
