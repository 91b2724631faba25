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
from worker.channel import AsyncChannel

_STDERR = 2


class Child:
    """A running child with our end of its channel."""

    def __init__(self, process: asyncio.subprocess.Process, line: AsyncChannel) -> None:
        self.line = line
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> "Child":
        """Start `command` with `--channel-fd` and `--parent-pid` added. Its stdout goes to our stderr."""
        ours, theirs = channel.pair()
        with theirs:
            line = await AsyncChannel.open(ours)  # before the process is there to be left behind
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
                line.close()
                raise
        return cls(process, line)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, payload: bytes) -> None:
        """Send one frame. To a child that is gone, nothing happens: its end shows when reading."""
        self.line.send(payload)

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
        self.line.close()
        if wait_s > 0 and self._process.returncode is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return await self._process.wait()
        if self._process.returncode is None:
            self.kill()  # before the next await: whoever cancels us finds it done
        status = await self._process.wait()
        await self.line.wait_closed()
        return status
