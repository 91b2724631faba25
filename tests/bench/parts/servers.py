"""The servers that are compared over HTTP: a whole fleet, and `transformers serve`."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.names import PLAN, intent_key, model_key
from shared.records import IntentRecord, ModelRecord, ReplicaRecord
from tests.bench.parts.ranks import num_cores
from tests.support.fleet_process import FleetProcess
from tests.support.ports import free_port
from tests.support.tiny import make_checkpoint

HOST = "127.0.0.1"


@dataclass
class Server:
    """A server that has the model loaded."""

    name: str
    port: int
    model: str
    key: str = "sk-bench"
    frozen_pid: int = 0  # a process that is stopped while others are measured

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for as long as the block does."""
        if self.frozen_pid:
            os.kill(self.frozen_pid, signal.SIGCONT)
        try:
            yield
        finally:
            if self.frozen_pid:
                os.kill(self.frozen_pid, signal.SIGSTOP)


class BenchFleet:
    """A fleet on this machine, without a model at first but a tiny one that its start asks for."""

    def __init__(self, process: FleetProcess) -> None:
        self.process = process
        self.port = int(process.api.split(":")[2].split("/")[0])

    def load(self, path: Path, **fields: Any) -> ReplicaRecord:
        """Have the checkpoint loaded under its directory's name, alone, and return its replica's record."""
        return asyncio.run(self._load(path, fields))

    def serve(self, path: Path, name: str = "", **fields: Any) -> Server:
        """The checkpoint loaded under a name, as a server."""
        model = f"{path.name}-{name}" if name else path.name
        self.load(path, id=model, **fields)
        return Server("plexus", self.port, model)

    def unload(self, model: str) -> None:
        """Have the model unloaded and wait until it is."""
        asyncio.run(self._unload(model))

    async def _load(self, path: Path, fields: dict[str, Any]) -> ReplicaRecord:
        async with await Bus.connect(self.process.bus_settings(), kind="cli", ident="bench") as bus, Fleet(bus) as view:
            plan, model = Bucket(bus, PLAN), fields.pop("id", path.name)
            await plan.put(model_key(model), encode(ModelRecord(id=model, source=str(path), **fields)))
            await plan.put(intent_key(model), encode(IntentRecord(model=model, want="loaded", by="bench")))

            def ready(view: Fleet) -> ReplicaRecord | None:
                return next((one for one in view.replicas_of(model) if one.state == "ready"), None)

            await view.wait_for(ready, timeout_s=300)
            found = ready(view)
            assert found is not None
            return found

    async def _unload(self, model: str) -> None:
        async with await Bus.connect(self.process.bus_settings(), kind="cli", ident="bench") as bus, Fleet(bus) as view:
            await Bucket(bus, PLAN).put(
                intent_key(model), encode(IntentRecord(model=model, want="unloaded", by="bench"))
            )
            await view.wait_for(lambda view: not view.replicas_of(model), timeout_s=60)


@contextmanager
def fleet(directory: Path, *, workers: int = 1, **variables: str) -> Iterator[BenchFleet]:
    """A fleet on this machine; `variables` go into its environment, where one thread per replica is not asked for."""
    directory.mkdir(parents=True, exist_ok=True)
    first = make_checkpoint(directory / "first")
    options = ["--model", first, "--workers", str(workers)]
    with FleetProcess(directory, *options, OMP_NUM_THREADS=str(num_cores()), **variables) as process:
        found = BenchFleet(process.started())
        found.unload("first")
        yield found


@contextmanager
def plexus(directory: Path, path: Path, **fields: Any) -> Iterator[Server]:
    """A fleet with the checkpoint loaded; `fields` go into its catalogue record."""
    with fleet(directory) as found:
        yield found.serve(path, **fields)


@contextmanager
def transformers_serve(python: str, path: Path, log: Path) -> Iterator[Server]:
    """`transformers serve` with continuous batching, as its documentation starts it."""
    port = free_port()
    command = [python, "-m", "transformers.cli.transformers", "serve", str(path), "--continuous-batching"]
    command += ["--host", HOST, "--port", str(port), "--device", "cpu", "--dtype", "bfloat16"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait(f"http://{HOST}:{port}/health", process, log)
        yield Server("transformers serve", port, str(path), frozen_pid=process.pid)
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=2.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the peer did not start:\n{log.read_text()[-2000:]}")
