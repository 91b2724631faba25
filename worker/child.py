"""A child process joined by a channel: the agent's fronts and the fronts' ranks.

The child ends with its parent, on every path: by the kernel's parent-death signal where there is one, and by end of
file on the channel everywhere.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from worker import channel

_STDERR = 2


class Child:
    """A running child with our end of its channel."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.reader = reader
        self._process = process
        self._writer = writer

    @classmethod
    async def start(cls, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> "Child":
        """Start `command` with `--channel-fd` and `--parent-pid` added. Its stdout goes to our stderr."""
        ours, theirs = channel.pair()
        with theirs:
            reader, writer = await channel.open_channel(ours)  # before the process is there to be left behind
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    "--channel-fd", str(theirs.fileno()),
                    "--parent-pid", str(os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=_STDERR,
                    pass_fds=(theirs.fileno(), *pass_fds),
                    start_new_session=True,
                )  # fmt: skip
            except BaseException:
                writer.close()
                raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, payload: bytes) -> None:
        """Send one frame. To a child that is gone, nothing happens: its end shows on the reader."""
        if not self._writer.is_closing():
            self._writer.write(channel.frame(payload))

    def kill(self) -> None:
        """End it at once."""
        # Not Process.kill: that looks whether the child has ended already, and thereby may eat its exit status.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit status, once it has ended; negative for a signal."""
        return await self._process.wait()

    async def end(self, wait_s: float = 0.0) -> int:
        """Close the channel, give it `wait_s` to end by itself, then kill it. Its exit status."""
        self._writer.close()
        if wait_s > 0 and self._process.returncode is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return await self._process.wait()
        if self._process.returncode is None:
            self.kill()  # before the next await: whoever cancels us finds it done
        status = await self._process.wait()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return status
