"""What the front tells its agent: changes of state within 0.1 s, changes of mere figures within 0.5 s."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from worker.protocol import FrontStatus

STATE_GAP_S = 0.1
FIGURES_GAP_S = 0.5
BEAT_S = 5.0  # also without a change: an agent ends a front that says nothing
_FIGURES = {"running": 0, "waiting": 0, "blocks_free": 0, "last_used_s": 0.0, "done_bytes": 0}


class Reporter:
    """Keeps the latest status and sends it when it is worth it. `run` does the sending."""

    def __init__(self, send: Callable[[FrontStatus], None]) -> None:
        self.status = FrontStatus(state="loading")
        self._send = send
        self._sent: FrontStatus | None = None
        self._sent_at = 0.0
        self._changed = asyncio.Event()

    def update(self, **fields: Any) -> None:
        """Change some fields."""
        status = msgspec.structs.replace(self.status, **fields)
        if status != self.status:
            self.status = status
            self._changed.set()

    def flush(self) -> None:
        """Send now, if anything is unsent."""
        self._changed.clear()
        if self.status != self._sent:
            self._sent, self._sent_at = self.status, time.monotonic()
            self._send(self.status)

    async def run(self) -> None:
        """Send changes, for ever."""
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._changed.wait()
            except TimeoutError:
                self._sent = None
            while (wait_s := self._due_s()) > 0:  # noqa: ASYNC110  (it waits for the time, not for a change)
                await asyncio.sleep(wait_s)
            self.flush()

    def _due_s(self) -> float:
        """Seconds until the next status may go; looked at again in between, because the state may change."""
        since = time.monotonic() - self._sent_at
        only_figures = self._sent is not None and _still(self._sent) == _still(self.status)
        return min(STATE_GAP_S, (FIGURES_GAP_S if only_figures else STATE_GAP_S) - since)


def _still(status: FrontStatus) -> FrontStatus:
    return msgspec.structs.replace(status, **_FIGURES)
