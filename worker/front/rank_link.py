"""One rank process, from its start to its end: a channel for messages, a stamp that shows where it is."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from shared.log import get
from worker import protocol, stamp
from worker.channel import ChannelClosed
from worker.child import Child
from worker.front.errors import RankFault
from worker.protocol import Fatal, FatalKind, FrontToRank, RankToFront
from worker.stamp import Reading, Stamp

log = get(__name__)

END_S = 0.5
RANK = (sys.executable, "-m", "worker.engine.rank")


class RankLink:
    """A running rank. `async with` starts it unless it was, and ends it; `serve` or `receive` its messages.

    The first thing to send is its configuration.
    """

    def __init__(self, command: Sequence[str] = RANK) -> None:
        self._command = command
        self._stamp_fd = stamp.create()
        self._stamp = Stamp(self._stamp_fd)
        self._child: Child | None = None
        self._reason = ""
        self.kind: FatalKind = ""  # of the end that it told of itself
        self.active_at = time.monotonic()  # when it last spoke or was last given something

    async def start(self) -> "RankLink":
        """Start the process."""
        self._child = await Child.start([*self._command, "--stamp-fd", str(self._stamp_fd)], pass_fds=(self._stamp_fd,))
        return self

    async def __aenter__(self) -> "RankLink":
        return self if self._child is not None else await self.start()

    async def __aexit__(self, *_: object) -> None:
        assert self._child is not None
        status = await self._child.end(END_S)  # if it ended on its own, its exit status says more than our signal
        self._reason = self._reason or _exit_reason(status)
        self._stamp.close()
        os.close(self._stamp_fd)

    @property
    def pid(self) -> int:
        """The rank's process id."""
        return self._child.pid if self._child is not None else 0

    @property
    def reason(self) -> str:
        """Why it ended."""
        return self._reason

    async def ended(self) -> int:
        """The exit status of the process, once it has ended."""
        assert self._child is not None
        return await self._child.wait()

    def reading(self) -> Reading:
        """Where the rank is."""
        return self._stamp.read()

    def send(self, message: FrontToRank) -> None:
        """Give the rank something to do. If it is gone, reading ends soon."""
        if self._child is not None:
            self.active_at = time.monotonic()
            self._child.send(protocol.encode(message))

    def kill(self, reason: str) -> None:
        """End it at once, for this reason; reading then ends."""
        self._reason = self._reason or reason
        if self._child is not None:
            self._child.kill()

    async def serve(self, on_message: Callable[[RankToFront], None]) -> None:
        """Call `on_message` with each message as soon as it is there, until the rank ends. Raises RankFault."""
        assert self._child is not None
        with contextlib.suppress(ChannelClosed):
            await self._child.line.serve(lambda frame: on_message(self._read(frame)))

    async def receive(self) -> RankToFront:
        """The next message. Raises ChannelClosed when the rank ends, and RankFault."""
        assert self._child is not None
        return self._read(await self._child.line.receive())

    def _read(self, frame: bytes) -> RankToFront:
        try:
            message = protocol.decode_rank_to_front(frame)
        except ValueError as error:
            raise RankFault(f"the rank sent something else than a message: {error}") from error
        self.active_at = time.monotonic()
        if isinstance(message, Fatal):
            self._reason = self._reason or message.message
            self.kind = message.kind
            raise ChannelClosed
        return message


def _exit_reason(status: int | None) -> str:
    if status is None:
        return "the rank did not end"
    return f"the rank was ended by signal {-status}" if status < 0 else f"the rank exited with status {status}"
