"""One process of an embedded fleet, kept running: started again when it dies, with back-off, and ended for sure."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.cli.errors import ChildFailed
from shared.process import dying_with_parent

MAX_LOG_BYTES = 16 << 20
TAIL_LINES = 12


@dataclass
class Backoff:
    """How long to wait before the next start. Deaths that lie further apart than `window_s` do not add up."""

    first_s: float = 0.2
    most_s: float = 10.0
    window_s: float = 60.0
    most_deaths: int = 6
    _deaths: list[float] = field(default_factory=list)

    def died(self, now: float) -> float | None:
        """Note a death at `now`; the seconds to wait, or None when it dies too often to go on."""
        self._deaths = [at for at in self._deaths if now - at < self.window_s] + [now]
        if len(self._deaths) > self.most_deaths:
            return None
        return min(self.most_s, self.first_s * 2.0 ** (len(self._deaths) - 1))


class Child:
    """A process that is kept running until `stop`. `run` is its life and must be awaited by its owner."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        log: Path | None,
        on_change: Callable[[str], None],
        on_start: Callable[[], None] = lambda: None,
        backoff: Backoff | None = None,
    ) -> None:
        """`log` None: it writes to our stderr. `on_change` is told in words when the process dies."""
        self.name = name
        self.log = log
        self.may_restart = False  # until the fleet is up, a death is a failure to start
        self._argv, self._env = list(argv), dict(env)
        self._on_change = on_change
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the running process; 0 between two."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def run(self) -> None:
        """Keep the process running until `stop`. Raises ChildFailed when it does not start or keeps dying."""
        while not self._stopping.is_set():
            status = await self._run_once()
            if self._stopping.is_set():
                return
            wait_s = self._backoff.died(time.monotonic()) if self.may_restart else None
            if wait_s is None:
                raise ChildFailed(self.name, status, self.log, tail(self.log))
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self._on_change(f"{self.name} died ({how}); starting it again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, and after `grace_s` SIGKILL. May be called twice."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace_s)
        self.kill()
        await process.wait()

    def kill(self) -> None:
        """SIGKILL to it and to all that it started."""
        self._stopping.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run_once(self) -> int:
        stderr = open_log(self.log) if self.log else None
        try:
            # A session of its own: Ctrl-C reaches the fleet through its owner, in the right order.
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=stderr if stderr is not None else subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=dying_with_parent(),
            )
        finally:
            if stderr is not None:
                os.close(stderr)
        if self._stopping.is_set():
            self.kill()  # `stop` came while it was being started
        status = await self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it may have left
        return status


def open_log(path: Path) -> int:
    """A file descriptor that appends to the log; one that has grown large is moved aside first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".old.log"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def tail(path: Path | None) -> str:
    """The last lines of a log, indented; empty when there is none."""
    if path is None or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])
