"""A process that is kept running, with real processes."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli.child import Backoff, Child
from gateway.cli.errors import ChildFailed
from shared.process import is_running
from tests.support.eventually import eventually

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


class Kept:
    """A child, its life, and what it said."""

    def __init__(self, program: str, log: Path) -> None:
        self.said: list[str] = []
        self.log = log
        self.child = Child(
            "it",
            [sys.executable, "-c", program],
            dict(os.environ),
            log=log,
            on_change=self.said.append,
            backoff=Backoff(first_s=0.01, most_deaths=2),
        )
        self.life = asyncio.create_task(self.child.run())

    async def output(self) -> str:
        return str(await eventually(self.log.read_text))


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[list[Kept]]:
    """Append what has to end with the test."""
    all_kept: list[Kept] = []
    yield all_kept
    for one in all_kept:
        await one.child.stop(0.0)
        with contextlib.suppress(ChildFailed):
            await one.life


async def test_a_child_that_dies_is_started_again_once_it_may(kept: list[Kept], tmp_path: Path) -> None:
    one = Kept("import time; print('up', flush=True); time.sleep(60)", tmp_path / "log")
    kept.append(one)
    await one.output()
    one.child.may_restart = True
    first = one.child.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: one.child.pid not in (0, first))
    assert one.said == ["it died (signal 9); starting it again"]
    await eventually(lambda: one.log.read_text() == "up\nup\n")


async def test_a_child_that_does_not_start_is_an_error_with_the_end_of_its_log(
    kept: list[Kept], tmp_path: Path
) -> None:
    one = Kept("import sys; print('no such device'); sys.exit(3)", tmp_path / "log")
    kept.append(one)
    with pytest.raises(ChildFailed, match=r"status 3.*\n.*no such device"):
        await one.life


async def test_a_child_that_keeps_dying_is_given_up(kept: list[Kept], tmp_path: Path) -> None:
    one = Kept("raise SystemExit(1)", tmp_path / "log")
    kept.append(one)
    one.child.may_restart = True
    with pytest.raises(ChildFailed):
        await one.life
    assert len(one.said) == 2


async def test_stop_ends_a_child_that_ignores_it_and_all_that_it_started(kept: list[Kept], tmp_path: Path) -> None:
    one = Kept(STUBBORN, tmp_path / "log")
    kept.append(one)
    grandchild = int(await one.output())
    pid = one.child.pid
    await one.child.stop(0.05)
    await one.life
    assert not is_running(pid)
    await eventually(lambda: not is_running(grandchild))
    await one.child.stop(0.05)  # twice is fine


async def test_a_large_log_is_moved_aside(kept: list[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.child.MAX_LOG_BYTES", 10)
    log = tmp_path / "it.log"
    log.write_text("more than ten bytes\n")
    one = Kept("import time; print('new', flush=True); time.sleep(60)", log)
    kept.append(one)
    await eventually(lambda: log.read_text() == "new\n")
    assert (tmp_path / "it.old.log").read_text() == "more than ten bytes\n"
