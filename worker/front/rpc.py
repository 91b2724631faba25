"""What owners may ask of a replica: ping, cancel, confirm, replay."""

import time
from collections.abc import Callable

import msgspec

from shared import messages
from shared.bus import Msg
from shared.log import get
from shared.messages import Cancel, Confirm, Ping, Pong, Replay, ReplicaRequest
from worker.front.effects import Effects
from worker.front.jobs import JobTable

log = get(__name__)

_decode = msgspec.json.Decoder(ReplicaRequest).decode


class Rpc:
    """Answers on the replica's rpc subject. Everything here is quick: requests are handled one after another."""

    def __init__(
        self,
        table: JobTable,
        pong: Callable[[], Pong],
        apply: Callable[[Effects], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._pong = pong
        self._apply = apply
        self._clock = clock

    async def on_message(self, message: Msg) -> None:
        """Handle one request."""
        try:
            request = _decode(message.data)
        except ValueError as error:
            log.warning("rpc.unreadable", error=str(error))
            return
        fx = Effects()
        match request:
            case Ping():
                await self._respond(message, messages.encode(self._pong()))
            case Replay():
                await self._respond(message, messages.encode(self._table.replay(request)))
            case Cancel():
                for job, attempt in request.jobs:
                    self._table.cancel(job, attempt, fx)
            case Confirm():
                for job, attempt in request.jobs:
                    self._table.confirm(job, attempt, self._clock(), fx)
        self._apply(fx)

    async def _respond(self, message: Msg, payload: bytes) -> None:
        if message.reply:
            await message.respond(payload)
