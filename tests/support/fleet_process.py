"""`plexus up --json` and `plexus serve --json` as processes, driven as a script would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from gateway.cli.home import DataDir, FleetFile
from shared.process import bound_to_parent
from shared.settings import BusSettings

ROOT = Path(__file__).parents[2]
START_S = 110.0  # a slow machine with cold disks; the model is small


def command(*argv: str | Path) -> list[str]:
    """The command line, by the interpreter that runs the tests."""
    return [sys.executable, "-c", "from gateway.cli import main; main()", *map(str, argv)]


def environment() -> dict[str, str]:
    """Ours, with the packages of this tree and one thread for every replica."""
    return dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def plexus(*argv: str | Path, typed: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `typed` is its stdin."""
    return subprocess.run(
        command(*argv), env=environment(), input=typed, capture_output=True, text=True, timeout=timeout_s, check=False
    )


class Running:
    """A process that prints one line of JSON when it is ready, and its stderr in a file."""

    def __init__(self, log: Path, *argv: str | Path, program: Sequence[str] = (), **variables: str) -> None:
        """`program` is what is started, with `argv`, if not `plexus`. `variables` go into its environment."""
        self.log = log
        started = [*program, *map(str, argv)] if program else command(*argv)
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                bound_to_parent(started, signal.SIGTERM),  # a test run that is killed leaves nothing behind
                env=environment() | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self._tree: dict[int, psutil.Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def line(self) -> dict[str, Any]:
        """The line of JSON; AssertionError with what it said on stderr when it ends without one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended without a word; stderr:\n{self.said()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def said(self) -> str:
        """Everything on stderr so far."""
        return self.log.read_text()

    def tree(self) -> list[psutil.Process]:
        """The process and all that ever descended from it, as far as this was asked before."""
        found = psutil.Process(self.process.pid)
        for one in [found, *found.children(recursive=True)]:
            self._tree[one.pid] = one
        return list(self._tree.values())

    def left(self) -> list[psutil.Process]:
        """Those of the tree that still run."""
        return [one for one in self._tree.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def end(self, signum: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(signum)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End it and its descendants, however they are."""
        if self.process.poll() is None:
            self.tree()
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for one in self.left():
            one.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


class FleetProcess(Running):
    """A fleet of one machine. Without spare replicas, whose start would take the cores from other tests."""

    def __init__(self, folder: Path, *argv: str | Path, port: int = 0, **variables: str) -> None:
        self.data_dir = folder / "data"
        up = ("up", "--json", "--data-dir", self.data_dir, "--port", str(port))
        super().__init__(folder / "up.log", *up, *argv, **{"PLEXUS_WORKER__STANDBY": "false"} | variables)

    def started(self) -> Self:
        """Return when it is ready."""
        self.facts = self.line()
        assert "error" not in self.facts, self.facts
        self.api = str(self.facts["api"])
        self.tree()
        return self

    def now(self) -> FleetFile:
        """Addresses, credentials and pids as they are now: pids change when processes are started again."""
        return DataDir(self.data_dir).read()

    def bus_settings(self) -> BusSettings:
        """How an operator reaches the fleet's NATS."""
        file = self.now()
        return BusSettings(url=file.nats, user=file.user, password=file.password)

    def operate(self, *argv: str | Path, typed: str = "", timeout_s: float = 90.0) -> str:
        """Run an operator's command on this fleet; its stdout. AssertionError when it fails."""
        done = plexus(*argv, "--data-dir", self.data_dir, typed=typed, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`plexus status --json`."""
        facts: dict[str, Any] = json.loads(self.operate("status", "--json"))
        return facts


def chat_body(model: str, text: str = "Tell me a story.", **fields: Any) -> dict[str, Any]:
    """A request body that the same seed answers alike."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "seed": 1} | fields


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream that has been read; AssertionError unless it ends with [DONE]."""
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", data[-1]
    return [json.loads(one) for one in data[:-1]]


def content(chunks: list[dict[str, Any]]) -> str:
    """The text of the first choice."""
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def wait_for(condition: Any, timeout_s: float = 20.0) -> Any:
    """The first true result of a plain function; AssertionError when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"did not come true within {timeout_s:g} s; last: {result!r}"
        time.sleep(0.05)
