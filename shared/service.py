"""A process as a NATS service: what `nats micro ls`, `info`, `stats` and `ping` show of it.

Written against the bus, because the library's own implementation wants a connection of its own. The answers follow
the schemas io.nats.micro.v1.*, by which the command line judges them: names and versions of a certain form, a
description, and an endpoint with all of its figures.
"""

import datetime
from collections.abc import Callable
from typing import Any

import msgspec

from shared.bus import Bus, Msg, Subscription

VERSION = "1.0.0"  # of the rpc protocol
VERBS = ("PING", "INFO", "STATS")


class Service:
    """Answers on ``$SRV.<verb>[.<name>[.<id>]]`` for one endpoint, from `start` to `close`."""

    def __init__(
        self,
        bus: Bus,
        name: str,
        ident: str,
        *,
        description: str,
        subject: str,
        queue: str = "",
        metadata: dict[str, str],
        stats: Callable[[], dict[str, Any]],
    ) -> None:
        """`subject` and `queue` are what the process itself listens on; `stats` are figures of its own."""
        self._bus = bus
        self._stats = stats
        self._description = description
        self._identity: dict[str, Any] = {"name": name, "id": ident, "version": VERSION, "metadata": metadata}
        self._endpoint: dict[str, Any] = {"name": "rpc", "subject": subject} | ({"queue_group": queue} if queue else {})
        self._started = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Listen."""
        name, ident = self._identity["name"], self._identity["id"]
        for verb in VERBS:
            for scope in ("", f".{name}", f".{name}.{ident}"):
                self._subscriptions.append(await self._bus.subscribe(f"$SRV.{verb}{scope}", self._on_message))

    async def close(self) -> None:
        """Listen no more. May be called twice."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        if message.reply:
            await message.respond(msgspec.json.encode(self.answer(message.subject.split(".")[1])))

    def answer(self, verb: str) -> dict[str, Any]:
        """What to say to a verb."""
        answer: dict[str, Any] = {"type": f"io.nats.micro.v1.{verb.lower()}_response", **self._identity}
        if verb == "INFO":
            answer |= {"description": self._description, "endpoints": [{**self._endpoint, "metadata": {}}]}
        elif verb == "STATS":
            counts: dict[str, Any] = {"num_requests": 0, "num_errors": 0, "last_error": ""}
            times = {"processing_time": 0, "average_processing_time": 0}
            answer |= {
                "started": self._started,
                "endpoints": [self._endpoint | counts | times | {"data": self._stats()}],
            }
        return answer
