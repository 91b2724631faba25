"""The two standing pulls of a replica, and how much they may ask for."""

import time
from collections.abc import Callable
from typing import Any

from shared import names
from worker.front.pull import Pull, PullBus, priority

BATCH_AFTER_S = 0.02  # that long no interactive job came


class Pulls:
    """Interactive jobs whenever there is room; batch jobs only where no interactive one would come."""

    def __init__(
        self,
        bus: PullBus,
        model: str,
        on_job: Callable[[Any], None],
        on_over: Callable[[], None],
    ) -> None:
        self._interactive, self._batch = (
            Pull(bus, names.pull_subject(model, job_class), on_job, on_over) for job_class in names.JOB_CLASSES
        )

    async def offer(self, *, used: int, slots: int, has_room: bool) -> None:
        """Keep the pulls standing that `used` of `slots`, and room in the cache, allow."""
        room = max(0, slots - used) if has_room else 0
        load = priority(used, slots)
        await self._interactive.offer(room, load)
        interactive = self._interactive.state
        idle = interactive.stands_for(time.monotonic()) >= BATCH_AFTER_S
        spare = room > interactive.outstanding or used == 0
        await self._batch.offer(int(idle and spare), load)

    async def pause(self) -> None:
        """Ask for nothing."""
        await self._interactive.pause()
        await self._batch.pause()
