"""A whole embedded fleet of real processes, started as a script would start it: ``plexus up --json``."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.settings import BusSettings

ROOT = Path(__file__).parents[2]
PLEXUS = [sys.executable, "-c", "from gateway.cli import main; main()"]


@dataclass(frozen=True)
class RunningFleet:
    """What `plexus up` said when it was ready."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    line: dict[str, Any]

    @property
    def api(self) -> str:
        """The base URL of the API, ending in /v1."""
        return str(self.line["api"])

    @property
    def port(self) -> int:
        """The port of the API."""
        return int(self.api.split(":")[2].split("/")[0])

    @property
    def metrics(self) -> str:
        """The URL of the metrics."""
        return str(self.line["metrics"])

    @property
    def pids(self) -> dict[str, int]:
        """Process name → pid, as they are now: nats, gateway, worker-1 …"""
        return dict(self._file()["pids"])

    @property
    def demo_path(self) -> str:
        """The directory of the demo model."""
        return str(ROOT / "worker" / "demo" / "model")

    @property
    def bus_settings(self) -> BusSettings:
        """How an operator reaches the fleet's NATS."""
        file = self._file()
        return BusSettings(url=file["nats"], user=file["user"], password=file["password"])

    def plexus(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run an operator's command against this fleet; its stdout. Raises CalledProcessError."""
        command = [*PLEXUS, *arguments, "--data-dir", str(self.data_dir)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=True).stdout

    def _file(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.data_dir / "fleet.json").read_text())
        return loaded


@contextmanager
def running_fleet(
    data_dir: Path,
    *,
    models: Sequence[str | Path] = (),
    workers: int = 1,
    ready_s: float = 90.0,
    **environment: str,
) -> Iterator[RunningFleet]:
    """A fleet for as long as the block runs; ports are free ones. Its end is checked: exit status 0."""
    command = [*PLEXUS, "up", "--json", "--port", "0", "--data-dir", str(data_dir), "--workers", str(workers)]
    for model in models:
        command += ["--model", str(model)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, **environment})
    try:
        yield RunningFleet(process, data_dir, _ready_line(process, ready_s))
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, "plexus up did not end well"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _ready_line(process: subprocess.Popen[bytes], ready_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 0.2)[0]:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"plexus up ended with status {process.wait()}; see its stderr")
            said: dict[str, Any] = json.loads(line)
            if "error" in said:
                raise RuntimeError(said["error"])
            return said
    raise TimeoutError(f"plexus up was not ready within {ready_s:.0f} s")
