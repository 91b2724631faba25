"""The standing pull: one request for one job, always open while there is room, with the load as its priority.

Done by hand because nats-py's `fetch` does not notice that a restarted server forgot its request, and cannot name a
priority group. The rules:

1. A request is over when a job or a final status answers it. Ask again if there is room.
2. Ask a second time when the load became lower than the standing request says.
3. A heartbeat that stays away, or a reconnect, means that the server may have forgotten us: take a new inbox and ask
   again. The server drops requests whose inbox nobody listens to, so nothing can arrive late.
4. No consumer (503), consumer deleted (409): ask again after a pause; a gateway will create it.
5. Priority group refused (400): the consumer was made without groups for an old server; ask without.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from shared import names
from shared.errors import BusError
from worker.front.effects import NAK

EXPIRES_S = 6.0  # short: a frozen front's request stays open and swallows a job
HEARTBEAT_S = 2.5  # of an idle replica's pulls, each sign of life wakes three processes
SILENCE_S = 2.2 * HEARTBEAT_S
MAX_OUTSTANDING = 2
PAUSES_S = (0.1, 0.2, 0.5)
NUM_PRIORITIES = 10


def priority(used: int, slots: int) -> int:
    """The load as NATS wants it: 0 (idle) … 9 (full); the server serves the lowest first."""
    return min(NUM_PRIORITIES - 1, used * NUM_PRIORITIES // max(slots, 1))


class PullState:
    """What stands, and whether to ask for more. Pure."""

    def __init__(self, grouped: bool = True) -> None:
        self.outstanding = 0
        self.grouped = grouped
        self._priority = 0  # of the best standing request
        self._since = 0.0  # of the oldest standing request
        self._heard = 0.0
        self._not_before = 0.0
        self._refusals = 0

    def wants(self, room: int, priority: int, now: float) -> bool:
        """Whether to send one more request."""
        if room <= self.outstanding or now < self._not_before:
            return False
        return self.outstanding == 0 or (self.outstanding < MAX_OUTSTANDING and priority < self._priority)

    def sent(self, priority: int, now: float) -> None:
        """A request goes out."""
        self._priority = priority if self.outstanding == 0 else min(priority, self._priority)
        self._since = now if self.outstanding == 0 else self._since
        self.outstanding += 1
        self._heard = now

    def heard(self, status: str, now: float) -> Literal["job", "alive", "over"]:
        """Something came on the inbox; `status` is its Status header, empty for a job."""
        self._heard = now
        if status == "100":
            return "alive"
        self.outstanding = max(0, self.outstanding - 1)
        self._since = now
        if status in ("", "408"):
            self._refusals = 0
            return "over" if status else "job"
        if status == "400":
            self.grouped = not self.grouped
        self._not_before = now + PAUSES_S[min(self._refusals, len(PAUSES_S) - 1)]
        self._refusals += 1
        return "over"

    def is_silent(self, now: float) -> bool:
        """Whether a request stands of which the server should have been heard."""
        return self.outstanding > 0 and now - self._heard > SILENCE_S

    def stands_for(self, now: float) -> float:
        """Seconds for which nobody had a job for us; 0 when nothing is asked for."""
        return now - self._since if self.outstanding else 0.0

    def reset(self) -> None:
        """All requests are gone."""
        self.outstanding = 0


class PullBus(Protocol):
    """What a pull needs of the bus."""

    @property
    def is_connected(self) -> bool: ...
    @property
    def has_priority_pulls(self) -> bool: ...
    def new_inbox(self) -> str: ...
    def send(self, subject: str, payload: bytes, *, reply: str = "") -> None: ...
    async def listen(self, subject: str, listener: Callable[[Any], None]) -> Any: ...


class Pull:
    """The standing pull on one consumer. `on_job` gets each message; `on_over` is told of a request that ended without.

    Both are called as soon as the message is read: a queue and a task between would delay each job. After a job the
    caller offers again by itself, when it has the time: the job comes first.
    """

    def __init__(
        self,
        bus: PullBus,
        subject: str,
        on_job: Callable[[Any], None],
        on_over: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = PullState(bus.has_priority_pulls)
        self._bus = bus
        self._subject = subject
        self._on_job = on_job
        self._on_over = on_over
        self._clock = clock
        self._inbox = ""
        self._subscription: Any = None
        self._lock = asyncio.Lock()  # subscribing suspends

    async def offer(self, room: int, priority: int) -> None:
        """Ask for a job if there is room and nothing better stands; after rule 3 if the server was silent."""
        async with self._lock:
            now = self._clock()
            if self.state.is_silent(now) and self._bus.is_connected:
                await self._forget()
            if not self.state.wants(room, priority, now) or not self._bus.is_connected:
                return
            if self._subscription is None:
                self._inbox = self._bus.new_inbox()
                self._subscription = await self._bus.listen(self._inbox, self._listener(self._inbox))
            request: dict[str, Any] = {
                "batch": 1,
                "expires": int(EXPIRES_S * 1e9),
                "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            }
            if self.state.grouped:
                request |= {"group": names.PRIORITY_GROUP, "priority": priority}
            self.state.sent(priority, now)
            with contextlib.suppress(BusError):  # then nothing comes, and rule 3 asks again
                self._bus.send(self._subject, msgspec.json.encode(request), reply=self._inbox)

    async def pause(self) -> None:
        """Ask for nothing. A job already on its way here comes again to somebody else after ack_wait."""
        async with self._lock:
            await self._forget()

    async def _forget(self) -> None:
        subscription, self._subscription, self._inbox = self._subscription, None, ""
        self.state.reset()
        if subscription is not None:
            with contextlib.suppress(BusError):
                await subscription.unsubscribe()

    def _listener(self, inbox: str) -> Callable[[Any], None]:
        def on_message(message: Any) -> None:
            status = (message.headers or {}).get(names.STATUS, "")
            if inbox != self._inbox:  # it crossed our leaving: somebody else shall have the job
                if not status:
                    with contextlib.suppress(BusError):
                        self._bus.send(message.reply, NAK)
                return
            what = self.state.heard(status, self._clock())
            if what == "job":
                self._on_job(message)
            elif what == "over":
                self._on_over()

        return on_message
