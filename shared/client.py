"""nats-py's client with its measured defects guarded. Only `shared.bus` uses it.

Written against nats-py 2.16; each override says what goes wrong without it.
"""

import asyncio
from typing import Any

from nats.aio.client import PING_PROTO, Client


class GuardedClient(Client):  # type: ignore[misc]
    """A client whose read loop survives late answers to pings, and whose flush means what it says."""

    _pending: list[bytes]
    _pending_data_size: int

    async def _process_pong(self) -> None:
        # The original sets a result without looking. When the waiting flush() or rtt() has timed out, that raises
        # inside the read loop: nothing is read any more, and is_connected stays true.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # The original writes the PING to the socket at once, before the commands that still wait in the buffer. The
        # answer then says nothing about them: a flush after subscribe returned before the server had the SUB.
        if future is None:
            future = asyncio.get_running_loop().create_future()
        self._pongs.append(future)
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_connect_init(self) -> None:
        # A PING that was buffered for the lost connection would have its PONG taken for that of a later one.
        kept = [command for command in self._pending if command is not PING_PROTO]
        self._pending_data_size -= len(PING_PROTO) * (len(self._pending) - len(kept))
        self._pending = kept
        await super()._process_connect_init()

    @property
    def is_stuck(self) -> bool:
        """Does it believe to be connected, or to be connecting, with nobody left who reads or tries?"""
        if self.is_closed:
            return False
        if self.is_connected:
            return self._reading_task is None or self._reading_task.done()
        return self._reconnection_task is not None and self._reconnection_task.done()

    @property
    def server_version(self) -> tuple[int, int]:
        """(major, minor) of the server; (0, 0) before the first connection."""
        try:
            major, minor = str(self._server_info.get("version", "")).split(".")[:2]
            return int(major), int(minor)
        except ValueError:
            return 0, 0
