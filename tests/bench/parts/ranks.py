"""A rank process driven as its front drives it, without one: what the engine does, the hop to its front included."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker import channel, protocol, stamp
from worker.channel import Channel
from worker.protocol import (
    Abort,
    Choice,
    Fatal,
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

SILENCE_S = 300.0
PLAIN = {"speculate": False}  # one token a step
LEAD_TOKENS = 400  # of a sequence, while the prompts of those that decode with it are computed


@dataclass
class Run:
    """One sequence."""

    submitted_at: float
    at: list[float] = field(default_factory=list)  # when each token was heard of; tokens of one message share a time
    ids: list[int] = field(default_factory=list)
    cached: int = 0
    has_ended: bool = False

    @property
    def ttft_s(self) -> float:
        """From the submission to the first token."""
        return self.at[0] - self.submitted_at


class Rank:
    """A rank that is ready."""

    def __init__(self, config: RankConfig, *, is_warm: bool = False) -> None:
        ours, theirs = channel.pair()
        self._stamp_fd = stamp.create()
        self.stamp = Stamp(self._stamp_fd)
        fds = (theirs.fileno(), self._stamp_fd)
        command = [sys.executable, "-m", "worker.engine.rank", "--channel-fd", str(fds[0]), "--stamp-fd", str(fds[1])]
        command += ["--parent-pid", str(os.getpid())]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen([*command, *(["--warm"] * is_warm)], pass_fds=fds, env=environment)
        theirs.close()
        self._channel = Channel(ours)
        self._runs: dict[str, Run] = {}
        self._number = 0
        self.stages: dict[str, float] = {}  # seconds of each stage of the load
        if is_warm:
            self._until(Loading)
        self.ready, self.load_s = self._load(config)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self._process.wait(30)
        self.stamp.close()
        os.close(self._stamp_fd)

    def submit(self, prompt: list[int], tokens: int, **sample: Any) -> Run:
        """Begin a greedy sequence, unless `sample` says otherwise, of exactly so many tokens."""
        self._number += 1
        key = f"job-{self._number}"
        values: dict[str, Any] = {"seed": self._number, "temperature": 0.0} | sample
        job = Submit(key=key, prompt=prompt, choices=[Choice(0)], sample=Sample(max_tokens=tokens, **values))
        run = self._runs[key] = Run(time.perf_counter())
        self._channel.send(protocol.encode(job))
        return run

    def wait(self, *runs: Run) -> None:
        """Until these have ended."""
        while not all(run.has_ended for run in runs):
            self.hear()

    def wait_first(self, *runs: Run) -> None:
        """Until each of these has a token."""
        while not all(run.at for run in runs):
            self.hear()

    def abort_all(self) -> None:
        """Drop whatever runs."""
        self._channel.send(protocol.encode(Abort([(key, -1) for key in self._runs])))
        while any(not run.has_ended for run in self._runs.values()):
            step = self._next()
            if isinstance(step, Step) and not step.running and not step.waiting:
                break
        self._runs.clear()

    def hear(self) -> Step:
        """The next step's message."""
        step = self._until(Step)
        now = time.perf_counter()
        for output in step.outputs:
            self._note(output, now)
        for refused in step.refused:
            raise RuntimeError(f"{refused.kind}: {refused.message}")
        return step

    def _note(self, output: Output, now: float) -> None:
        run = self._runs[output.key]
        run.cached = max(run.cached, output.cached)
        run.at += [now] * len(output.ids)
        run.ids += output.ids
        if output.finish:
            run.has_ended = True
            del self._runs[output.key]

    def _load(self, config: RankConfig) -> tuple[Ready, float]:
        started = before = time.perf_counter()
        stage = "start"
        self._channel.send(protocol.encode(config))
        while True:
            message = self._next()
            now = time.perf_counter()
            name = message.stage if isinstance(message, Loading) else ""
            if name != stage:
                self.stages[stage] = self.stages.get(stage, 0.0) + now - before
                stage, before = name, now
            if isinstance(message, Ready):
                return message, now - started

    def _until(self, kind: Any) -> Any:
        while not isinstance(message := self._next(), kind):
            pass
        return message

    def _next(self) -> RankToFront:
        if not hasattr(self, "_unread"):
            self._unread: list[bytes] = []
        if not self._unread:
            self._unread = self._channel.receive(SILENCE_S)
            if not self._unread:
                raise TimeoutError(f"the rank said nothing for {SILENCE_S:g} s")
        message = protocol.decode_rank_to_front(self._unread.pop(0))
        if isinstance(message, Fatal):
            raise RuntimeError(message.message)
        return message


def rank_config(path: Path, **changes: Any) -> RankConfig:
    """As an agent with all cores and plenty of memory would configure it."""
    values: dict[str, Any] = {
        "path": str(path),
        "backend": "torch",
        "device": "cpu",
        "dtype": "auto",
        "threads": num_cores(),
        "memory_bytes": 8 << 30,
        "context_limit": 0,
        "slots": 32,
        "prefill_tokens": 512,
        "log_level": "warning",
    }
    return RankConfig(**(values | changes))


def num_cores() -> int:
    """Cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def running(config: RankConfig, *, is_warm: bool = False) -> Iterator[Rank]:
    """A rank for as long as the block runs."""
    rank = Rank(config, is_warm=is_warm)
    try:
        yield rank
    finally:
        rank.close()


def decode_steps(rank: Rank, prompts: list[list[int]], steps: int, **sample: Any) -> list[float]:
    """Seconds of each of so many steps in which all prompts' sequences decode; they are prefilled before."""
    room = steps + LEAD_TOKENS
    runs = [rank.submit(prompt, room, **sample) for prompt in prompts]
    rank.wait_first(*runs)
    times = [time.perf_counter()]
    while len(times) <= steps and not any(run.has_ended for run in runs):
        before = sum(len(run.ids) for run in runs)
        rank.hear()
        if sum(len(run.ids) for run in runs) > before:
            times.append(time.perf_counter())
    rank.abort_all()
    if len(times) <= steps // 2:
        raise RuntimeError(f"a sequence ended before {steps} steps were seen")
    return [later - earlier for earlier, later in itertools.pairwise(times[1:])]
