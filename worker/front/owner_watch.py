"""Notices owners that are gone, and what becomes of their jobs then."""

import time
from collections.abc import Callable

from shared import messages, names
from shared.bus import Bus, Msg
from shared.errors import BusError, NoResponders
from shared.log import get
from shared.messages import Ping
from worker.front.effects import Effects
from worker.front.jobs import JobTable
from worker.front.owners import GoneOwners
from worker.front.run import Run

log = get(__name__)

PING_S = 0.5


class OwnerWatch:
    """Listens for the server's word that nobody hears our deltas, and asks the owner itself before it acts on it."""

    def __init__(self, bus: Bus, replica: str, table: JobTable, apply: Callable[[Effects], None]) -> None:
        self.gone = GoneOwners()
        self._bus = bus
        self._replica = replica
        self._table = table
        self._apply = apply

    async def start(self) -> None:
        """Listen."""
        await self._bus.subscribe(names.no_responders(self._replica, ">"), self._on_message)

    async def _on_message(self, message: Msg) -> None:
        if (message.headers or {}).get(names.STATUS) == "503":
            self.gone.note(names.gone_reply(self._replica, message.subject), time.monotonic())

    async def check(self, reply: str, lately: bool) -> None:
        """The grace time of this reply subject is over: ask the owners of its jobs whether they are there."""
        by_owner: dict[str | None, list[Run]] = {}
        for run in self._table.of_reply(reply):
            by_owner.setdefault(run.job.owner, []).append(run)
        for owner, runs in by_owner.items():
            if not await self._is_gone(owner, lately):
                continue
            fx = Effects()
            for run in runs:
                log.info("job.owner_lost", job=run.job.id, model=run.job.model, then=run.job.on_owner_lost)
                self._table.owner_lost(run, time.monotonic(), fx)
            self._apply(fx)

    async def _is_gone(self, owner: str | None, lately: bool) -> bool:
        if owner is None:
            return lately  # nobody to ask: the reply subject itself must stay deserted
        try:
            await self._bus.request(owner, messages.encode(Ping()), timeout_s=PING_S)
        except NoResponders:
            return True
        except BusError:
            return False
        return False
