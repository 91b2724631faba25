"""What is done once nobody waits for it: accounts of ended requests, confirmations to replicas."""

import asyncio
from collections.abc import Callable

from shared import collector
from shared import log as logs

DELAY_S = 0.025

log = logs.get(__name__)


class Afterwards:
    """Does small work a moment later, and at once what has come together meanwhile.

    A client often sends its next request as soon as it has the last answer: it shall not wait for that one's accounts.
    """

    def __init__(self, delay_s: float = DELAY_S) -> None:
        self._delay_s = delay_s
        self._works: list[Callable[[], None]] = []

    def __call__(self, work: Callable[[], None]) -> None:
        """Have this done. An exception of it is logged."""
        if not self._works:
            asyncio.get_running_loop().call_later(self._delay_s, self.settle)
        self._works.append(work)

    def settle(self) -> None:
        """Do now what is left."""
        works, self._works = self._works, []
        for work in works:
            try:
                work()
            except Exception:
                log.exception("afterwards.failed")
        collector.collect()
