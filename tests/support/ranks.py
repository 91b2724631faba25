"""A real rank process on a real channel, driven from the front's side by plain blocking calls."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from worker import channel, protocol, stamp
from worker.channel import Channel
from worker.protocol import (
    Choice,
    Fatal,
    FrontToRank,
    Loading,
    Output,
    RankConfig,
    RankToFront,
    Ready,
    Sample,
    Step,
    Submit,
)
from worker.stamp import Stamp

TIMEOUT_S = 60.0
M = TypeVar("M", Loading, Ready, Step, Fatal)


class RankProcess:
    """The front's view of one rank."""

    def __init__(self) -> None:
        ours, theirs = channel.pair()
        fd = stamp.create()
        self.stamp = Stamp(fd)
        fds = (theirs.fileno(), fd)
        self.spawned_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker.engine.rank", *arguments(fds, os.getpid())],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        os.close(fd)
        self.channel = Channel(ours)
        self.seen: list[RankToFront] = []  # everything received, in order
        self._printed: tuple[str, str] | None = None
        self._unread: list[RankToFront] = []

    def send(self, *messages: FrontToRank) -> None:
        """Send these."""
        for message in messages:
            self.channel.send(protocol.encode(message))

    def next(self) -> RankToFront:
        """The next message. Raises ChannelClosed, or TimeoutError."""
        if not self._unread:
            frames = self.channel.receive(TIMEOUT_S)
            if not frames:
                raise TimeoutError(f"the rank said nothing for {TIMEOUT_S} s")
            self._unread = [protocol.decode_rank_to_front(frame) for frame in frames]
            self.seen += self._unread
        return self._unread.pop(0)

    def wait_for(self, kind: type[M]) -> M:
        """The next message of this type; others are passed over, Fatal is an error unless waited for."""
        while True:
            message = self.next()
            if isinstance(message, kind):
                return message
            if isinstance(message, Fatal):
                raise AssertionError(message.message)

    def collect(self, *expected: tuple[str, int]) -> dict[tuple[str, int], list[Output]]:
        """The outputs of (key, choice) until each of the expected has finished."""
        outputs: dict[tuple[str, int], list[Output]] = {}
        left = set(expected)
        while left:
            for output in self.wait_for(Step).outputs:
                outputs.setdefault((output.key, output.choice), []).append(output)
                if output.finish:
                    left.discard((output.key, output.choice))
        return outputs

    def close(self) -> tuple[str, str]:
        """End it, if it still runs, and return what it printed; may be called twice."""
        self.channel.close()
        if self._printed is None:
            out, err = self.process.communicate(timeout=TIMEOUT_S)
            self._printed = out.decode(), err.decode()
        self.stamp.close()
        return self._printed


def arguments(fds: tuple[int, int], parent_pid: int) -> list[str]:
    """The command line of a rank."""
    return ["--channel-fd", str(fds[0]), "--stamp-fd", str(fds[1]), "--parent-pid", str(parent_pid)]


@contextmanager
def running_rank() -> Iterator[RankProcess]:
    """A rank process, not configured yet."""
    rank = RankProcess()
    try:
        yield rank
    finally:
        rank.close()


def rank_config(path: Path, **changes: Any) -> RankConfig:
    """A small configuration."""
    values: dict[str, Any] = {
        "path": str(path),
        "backend": "torch",
        "device": "cpu",
        "dtype": "auto",
        "threads": 1,
        "memory_bytes": 1 << 30,
        "context_limit": 0,
        "slots": 4,
        "prefill_tokens": 64,
        "log_level": "warning",
    }
    return RankConfig(**(values | changes))


def job(
    key: str, prompt: list[int], *, max_tokens: int = 8, choices: list[Choice] | None = None, **sample: Any
) -> Submit:
    """A greedy job, unless `sample` says otherwise."""
    values: dict[str, Any] = {"seed": 1, "temperature": 0.0} | sample
    return Submit(
        key=key, prompt=prompt, choices=choices or [Choice(0)], sample=Sample(max_tokens=max_tokens, **values)
    )


def ids(outputs: list[Output]) -> list[int]:
    """The tokens of a choice's outputs, checked for gaps."""
    joined: list[int] = []
    first = outputs[0].start
    for output in outputs:
        assert output.start == first + len(joined)
        joined += output.ids
    return joined


def soon(is_so: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether it becomes so in time; for tests without an event loop, see `eventually` for those with one."""
    give_up = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True
