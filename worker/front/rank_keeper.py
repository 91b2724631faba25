"""Starts the rank, passes on what it says, ends it when it hangs, starts it again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from shared.log import get
from shared.messages import Pong
from worker.front.errors import LoadFailed, RankFault
from worker.front.health import Restarts, hang
from worker.front.rank_link import RankLink
from worker.protocol import FatalKind, FrontToRank, RankConfig, RankToFront, Ready

log = get(__name__)

_UNEXPECTED = "The rank ended unexpectedly."


class RankKeeper:
    """The rank of a replica, whichever process it is at the moment. `run` keeps it going until `retire`."""

    def __init__(
        self,
        replica: str,
        config: RankConfig,
        command: Sequence[str],
        *,
        on_start: Callable[[int, str], None],
        on_message: Callable[[RankToFront], None],
        on_end: Callable[[str], Awaitable[None]],
        spare: RankLink | None = None,
    ) -> None:
        """`on_start` gets the process id, 0 while there is none, and why the one before ended; `on_end` that alone.

        `spare` is a rank that was started already; it is the first.
        """
        self._replica = replica
        self._config = config
        self._command = command
        self._on_start = on_start
        self._on_message = on_message
        self._on_end = on_end
        self._spare = spare
        self._restarts = Restarts()
        self._link: RankLink | None = None
        self._was_ready = False
        self._retired = False

    async def run(self) -> None:
        """Start it, read it to its end, start it again. Raises LoadFailed when that is hopeless."""
        reason = ""
        while not self._retired:
            spare, self._spare = self._spare, None
            async with spare or RankLink(self._command) as link:
                link.send(self._config)
                self._link = link
                self._on_start(link.pid, reason)
                try:
                    await link.serve(self._hear)
                except RankFault as fault:
                    link.kill(str(fault))
                self._link = None
                # Its jobs hear of it at once; why exactly the process ended is known only after it has.
                await self._on_end(link.reason or _UNEXPECTED)
            reason = link.reason
            if not self._retired:
                await self._pause(reason, link.kind)

    def _hear(self, message: RankToFront) -> None:
        self._was_ready = self._was_ready or isinstance(message, Ready)
        self._on_message(message)

    async def _pause(self, reason: str, kind: FatalKind) -> None:
        if not self._was_ready:
            raise LoadFailed(reason, kind)
        pause_s = self._restarts.died()
        log.error("rank.ended", replica=self._replica, reason=reason, restart_in_s=pause_s)
        if pause_s is None:
            deaths = self._restarts.deaths
            raise LoadFailed(f"the rank died {deaths} times without finishing a job, at last: {reason}", kind)
        self._on_start(0, reason)
        await asyncio.sleep(pause_s)

    def send(self, message: FrontToRank) -> None:
        """Give it something to do; nothing happens while there is no rank."""
        if self._link is not None:
            self._link.send(message)

    def retire(self) -> None:
        """Do not start it again."""
        self._retired = True

    def finished_job(self) -> None:
        """It works."""
        self._restarts.finished_job()

    def check(self, *, has_work: bool) -> None:
        """End it if it hangs."""
        if self._link is not None and (reason := self._hang(self._link, has_work)):
            log.error("rank.hung", replica=self._replica, reason=reason)
            self._link.kill(f"The rank was {reason}.")

    def pong(self, *, running: int, has_work: bool) -> Pong:
        """Where it is."""
        if self._link is None:
            return Pong(phase="start", running=running)
        step, phase, age_s, predicted_s = self._link.reading()
        return Pong(step, phase, age_s, predicted_s, running, bool(self._hang(self._link, has_work)))

    def _hang(self, link: RankLink, has_work: bool) -> str:
        return hang(link.reading(), has_work=has_work, quiet_s=time.monotonic() - link.active_at)
