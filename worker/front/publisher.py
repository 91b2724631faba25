"""Batches of items on their way out: one message per reply subject and step."""

from collections.abc import Callable
from typing import Protocol

from shared import messages, names
from shared.errors import BadSubject, BusUnavailable, PayloadTooLarge
from shared.log import get
from shared.messages import DeltaBatch, Item

log = get(__name__)


class PublishBus(Protocol):
    """What the publisher needs of the bus."""

    def send(self, subject: str, payload: bytes, *, reply: str = "") -> None: ...


class Publisher:
    """Publishes items so that the server tells us when nobody listens."""

    def __init__(self, bus: PublishBus, replica: str, worker: str, max_bytes: Callable[[], int]) -> None:
        self._bus = bus
        self._replica = replica
        self._worker = worker
        self._max_bytes = max_bytes

    def publish(self, reply: str, items: list[Item]) -> None:
        """Publish to one reply subject, in as many messages as it takes.

        While the server is away the bus keeps what it can hold. What it cannot hold is not lost: owners see the gap
        and ask for a replay.
        """
        payload = messages.encode(DeltaBatch(messages.VERSION, self._replica, self._worker, items))
        if len(payload) > self._max_bytes() and len(items) > 1:
            half = len(items) // 2
            self.publish(reply, items[:half])
            self.publish(reply, items[half:])
            return
        try:
            self._bus.send(reply, payload, reply=names.no_responders(self._replica, reply))
        except BusUnavailable:
            pass
        except BadSubject as error:
            log.error("reply.unusable", error=str(error))
        except PayloadTooLarge as error:
            log.error("item.too_large", reply=reply, size_bytes=error.size, limit_bytes=error.limit)
