"""A fleet as it is set up in production: a nats-server, gateways and workers, each a process with settings of its own.

`plexus up` (see `fleet_process`) starts all of them together and alike; here each can be of its own size, die alone and
come back.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

from gateway.cli.processes import toml
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import ModelRecord
from shared.settings import BusSettings
from tests.support.fleet_process import Running, plexus

T = TypeVar("T")

GATEWAY = (sys.executable, "-P", "-m", "gateway")
WORKER = (sys.executable, "-P", "-m", "worker")


class Gateway(Running):
    """One gateway."""

    def started(self) -> Self:
        """Return when it serves."""
        facts = self.line()
        assert "error" not in facts, facts
        self.id, self.url = str(facts["gateway"]), str(facts["url"])
        return self


class Worker(Running):
    """The agent of one host, with whatever it starts."""

    def started(self) -> Self:
        """Return when it is in the fleet."""
        self.facts = self.line()
        return self


class SeparateFleet:
    """A nats-server, and what a test starts beside it. Nothing of it is left at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = EmbeddedBroker(folder / "nats")
        self.gateways: list[Gateway] = []
        self.workers: dict[str, Worker] = {}
        self._started: list[Running] = []
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._loop.run_until_complete(self.broker.start())
        operator = {"bus": self._bus("operator").model_dump(exclude_defaults=True)}
        self.operator_file = self._write("operator", operator)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.process.terminate()
        for process in self._started:
            process.kill()
        self._loop.run_until_complete(self.broker.stop())
        self._loop.close()

    # --- processes -------------------------------------------------------------------------------------------

    def gateway(self, program: Iterable[str] = GATEWAY, **settings: Any) -> Gateway:
        """Start a gateway; it is in `gateways`. `settings` are those of its file."""
        addresses = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
        file = self._write("gateway", addresses | settings | {"bus": self._bus("gateway").model_dump()})
        process = Gateway(file.with_suffix(".log"), "--config", file, "--json", program=tuple(program))
        self.gateways.append(process)
        self._started.append(process)
        return process

    def worker(self, name: str, memory_bytes: int, **settings: Any) -> Worker:
        """Start a worker on the CPU with so much memory for its models; `workers` has it by its name."""
        ours = {"name": name, "state_dir": str(self.folder / name), "device": "cpu", "memory_bytes": memory_bytes}
        file = self._write(name, ours | settings | {"bus": self._bus("worker").model_dump()})
        process = Worker(file.with_suffix(".log"), "--config", file, "--json", program=WORKER)
        self.workers[name] = process
        self._started.append(process)
        return process

    def _bus(self, role: Any) -> BusSettings:
        return self.broker.bus_settings(role)

    def _write(self, name: str, settings: dict[str, Any]) -> Path:
        file = self.folder / f"{name}-{len(self._started)}.toml"
        file.touch(mode=0o600)
        file.write_text(toml(settings))
        return file

    # --- operating it ----------------------------------------------------------------------------------------

    def operate(self, *argv: str | Path, timeout_s: float = 60.0) -> str:
        """Run an operator's command on this fleet; its stdout. AssertionError when it fails."""
        done = plexus(*argv, "--config", self.operator_file, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def said(self) -> str:
        """The ends of all logs, for a test that failed."""
        ends = [
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(ends)

    async def operator(self) -> Bus:
        """A connection as an operator has it; to be closed."""
        return await Bus.connect(self._bus("operator"), kind="cli", ident="test")


def models_toml(records: Iterable[ModelRecord], aliases: dict[str, str] | None = None) -> str:
    """A catalogue file with entries of these ids, sources and options."""
    parts = []
    for record in records:
        lines = ["[[model]]", f"id = {json.dumps(record.id)}", f"source = {json.dumps(record.source)}"]
        lines += [f"{name} = {_value(getattr(record, name))}" for name in _OPTIONAL if getattr(record, name)]
        parts.append("\n".join(lines))
    parts.append(
        "[aliases]\n" + "\n".join(f"{json.dumps(name)} = {json.dumps(id)}" for name, id in (aliases or {}).items())
    )
    return "\n\n".join(parts) + "\n"


_OPTIONAL = (
    "backend",
    "dtype",
    "context_limit",
    "max_slots",
    "workers",
    "keep_alive_s",
    "max_replicas",
    "devices",
    "options",
)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, as an editor does."""
    partial = path.with_suffix(".new")
    partial.write_text(text)
    partial.replace(path)


async def until(fleet: Fleet, condition: Callable[[Fleet], T], timeout_s: float = 60.0) -> T:
    """The first true result, tried after each change of a record."""
    await fleet.wait_for(condition, timeout_s)
    return condition(fleet)
