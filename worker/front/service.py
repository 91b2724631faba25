"""The replica as a NATS service: what `nats micro ls`, `info` and `stats` show of it.

Written against the bus, because the library's own implementation wants a connection of its own. The answers follow
the schemas io.nats.micro.v1.*, which demand a description.
"""

import datetime
from collections.abc import Callable
from typing import Any

import msgspec

from shared.bus import Bus, Msg

NAME = "plexus-replica"
VERSION = "1.0.0"  # of the rpc protocol
DESCRIPTION = "One loaded copy of a model"
_VERBS = ("PING", "INFO", "STATS")


class Service:
    """Answers on ``$SRV.<verb>[.<name>[.<id>]]``."""

    def __init__(
        self, bus: Bus, ident: str, subject: str, metadata: dict[str, str], stats: Callable[[], dict[str, Any]]
    ) -> None:
        self._bus = bus
        self._stats = stats
        self._identity = {"name": NAME, "id": ident, "version": VERSION, "metadata": metadata}
        self._endpoint: dict[str, Any] = {"name": "rpc", "subject": subject, "queue_group": ident}
        self._started = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")

    async def start(self) -> None:
        """Listen."""
        for verb in _VERBS:
            for scope in ("", f".{NAME}", f".{NAME}.{self._identity['id']}"):
                await self._bus.subscribe(f"$SRV.{verb}{scope}", self._on_message)

    async def _on_message(self, message: Msg) -> None:
        if message.reply:
            await message.respond(msgspec.json.encode(self.answer(message.subject.split(".")[1])))

    def answer(self, verb: str) -> dict[str, Any]:
        """What to say to a verb."""
        answer: dict[str, Any] = {"type": f"io.nats.micro.v1.{verb.lower()}_response", **self._identity}
        if verb == "INFO":
            answer |= {"description": DESCRIPTION, "endpoints": [{**self._endpoint, "metadata": {}}]}
        elif verb == "STATS":
            counts: dict[str, Any] = {"num_requests": 0, "num_errors": 0, "last_error": ""}
            times = {"processing_time": 0, "average_processing_time": 0}
            answer |= {
                "started": self._started,
                "endpoints": [self._endpoint | counts | times | {"data": self._stats()}],
            }
        return answer
