"""The download as a child process, with a script in its place."""

import asyncio
import sys
from pathlib import Path

import pytest

from shared.process import is_running
from shared.records import ModelRecord
from tests.support.eventually import eventually
from worker.agent.errors import FetchFailed
from worker.agent.fetching import fetch
from worker.models.errors import NotServable

REMOTE = ModelRecord(id="m", source="owner/name", revision="abc")


def script(body: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        f"import json, os, sys, time\nsay = lambda **k: print(json.dumps(k), flush=True)\n{body}",
    ]


async def test_progress_and_the_path() -> None:
    told: list[tuple[int, int]] = []
    command = script(
        "assert sys.argv[1:4] == ['owner/name', '--revision', 'abc'] and int(sys.argv[5]) == os.getppid()\n"
        "say(done=1, total=4)\nprint('noise')\nsay(done=4, total=4)\nsay(path='/models/m')"
    )
    assert await fetch(REMOTE, lambda done, total: told.append((done, total)), command) == Path("/models/m")
    assert told == [(1, 4), (4, 4)]


async def test_an_error_is_passed_on() -> None:
    with pytest.raises(FetchFailed, match="gated"):
        await fetch(REMOTE, lambda *_: None, script("say(error='it is gated', kind='forbidden')\nsys.exit(1)"))
    with pytest.raises(FetchFailed, match="status 7"):
        await fetch(REMOTE, lambda *_: None, script("sys.exit(7)"))


async def test_a_cancelled_download_ends_its_process() -> None:
    pids: list[int] = []
    command = script("say(done=os.getpid(), total=1)\ntime.sleep(60)")
    task = asyncio.create_task(fetch(REMOTE, lambda done, _: pids.append(done), command))
    await eventually(lambda: pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(pids[0])


async def test_a_local_directory_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="no directory"):
        await fetch(ModelRecord(id="m", source=str(tmp_path / "none")), lambda *_: None)
    with pytest.raises(NotServable):
        await fetch(ModelRecord(id="m", source=str(tmp_path)), lambda *_: None)
    (tmp_path / "config.json").write_text("{}")
    assert await fetch(ModelRecord(id="m", source=str(tmp_path), backend="synthetic"), lambda *_: None) == tmp_path
