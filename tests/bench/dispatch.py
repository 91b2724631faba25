"""What the queue costs: ``python -m tests.bench.dispatch [--litellm PYTHON] [--rounds N] [--only LOAD] [--json FILE]``.

The same streams over HTTP, alternating in one run, from three servers:

* direct: one FastAPI process that makes the text itself (`direct_server`), the floor that no dispatcher can beat;
* plexus: gateway → nats-server → front → rank, all real, with the synthetic back end in place of forward and sampling;
* litellm: LiteLLM's proxy in front of the direct server, when ``--litellm`` names the Python of an environment that has
  ``litellm[proxy]`` installed (``python -m venv DIR && DIR/bin/pip install 'litellm[proxy]'``).

The row *floor* is no server: one job through the same queue and one message back, between two processes that do nothing
else (`floor`). What stands there is part of what *plexus* adds, whatever its own code costs.

*turns* is an agent's conversation: every turn sends all of it again, and most of its tokens are in the cache. What its
first token takes is what gateway, queue, front and scheduler do with so long a prompt; the back end computes nothing.

One token per event. The client is lean and its own CPU is in the table. All of it shares the machine's cores, so
tokens/s is what the whole chain reaches on them; CPU per token by process says who needs how much.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.names import PLAN, intent_key, model_key
from shared.records import IntentRecord, ModelRecord
from shared.settings import BusSettings
from tests.bench import floor
from tests.bench.lean_client import Load, chat_request, conversation_request, run_load, stream_once
from tests.support.fleet_process import FleetProcess
from tests.support.ports import free_port
from tests.support.tiny import make_checkpoint

HOST = "127.0.0.1"
PROMPT = "Count for me, please."
SATURATED, PACED = "synthetic-saturated", "synthetic-paced"
PACE_TOKENS_PER_S = 50


@dataclass
class Server:
    """One row of the comparison."""

    name: str
    ports: dict[str, int]  # load name → port
    models: dict[str, str]  # load name → model id
    pids: dict[str, int]  # process name → pid
    key: str = "sk-bench"
    bus: BusSettings | None = None


@dataclass
class Sample:
    """One load on one server."""

    load: Load
    cpu_s: dict[str, float] = field(default_factory=dict)


SETTLE_S, IDLE_S = 10, 30  # after the loads; the clock of CPU time ticks every 10 ms
LOADS = {  # name: (clients, requests each, tokens)
    "first token": (1, 60, 4),
    "requests": (16, 25, 1),
    "saturated": (64, 2, 256),
    "paced": (64, 1, 200),
}
TURNS = "turns"
TURN_MESSAGES, TURN_WORDS, NUM_TURNS = 100, 250, 8


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used."""
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: Server, name: str) -> Sample:
    """Run one load and note what each process spent on it."""
    clients, each, tokens = LOADS[name]
    request = chat_request(HOST, server.models[name], PROMPT, tokens, server.key)
    before = {process: cpu_seconds(pid) for process, pid in server.pids.items()}
    load = await run_load(HOST, server.ports[name], request, clients=clients, requests_each=each)
    spent = {process: cpu_seconds(pid) - before[process] for process, pid in server.pids.items()}
    if load.errors:
        raise RuntimeError(f"{server.name}, {name}: {load.errors[0]} (and {len(load.errors) - 1} more)")
    return Sample(load, spent)


async def converse(server: Server) -> list[float]:
    """Seconds to the first token of each turn of a long conversation."""
    words = " ".join(f"{word} {number}" for number in range(TURN_WORDS // 2) for word in ("boat", "river"))
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": f"{time.time_ns()} {number} {words}"}
        for number in range(TURN_MESSAGES - 1)
    ]
    seconds = []
    for turn in range(NUM_TURNS):
        request = conversation_request(HOST, server.models["saturated"], messages, 4, server.key)
        stream = await stream_once(HOST, server.ports["saturated"], request)
        if stream.status != 200:
            raise RuntimeError(f"{server.name}, {TURNS}: status {stream.status}: {stream.tail!r}")
        seconds.append(stream.first_token_s)
        messages += [{"role": "assistant", "content": "So it is."}, {"role": "user", "content": f"And {turn}?"}]
    return seconds


def wait_http(url: str, timeout_s: float = 60.0) -> None:
    """Until `url` answers at all. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=1.0)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer within {timeout_s:.0f} s")


@contextmanager
def child(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process for as long as the block runs."""
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def direct() -> Iterator[Server]:
    """The server without a queue: one process for each pace."""
    ports = {rate: free_port() for rate in (0, PACE_TOKENS_PER_S)}
    with ExitStack() as stack:
        pids = {}
        for rate, port in ports.items():
            command = [sys.executable, "-m", "tests.bench.direct_server", str(port), str(rate)]
            pids[rate] = stack.enter_context(child(command)).pid
            wait_http(f"http://{HOST}:{port}/")
        by_load = {name: PACE_TOKENS_PER_S if name == "paced" else 0 for name in LOADS}
        yield Server(
            "direct",
            {name: ports[rate] for name, rate in by_load.items()},
            dict.fromkeys(LOADS, "direct"),
            {"server": pids[0], "server (paced)": pids[PACE_TOKENS_PER_S]},
        )


@contextmanager
def litellm(python: str, upstream: Server, directory: Path) -> Iterator[Server]:
    """LiteLLM's proxy before the direct server."""
    config = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": "openai/direct",
                    "api_base": f"http://{HOST}:{port}/v1",
                    "api_key": "sk-bench",
                },
            }
            for name, port in {"direct": upstream.ports["saturated"], "direct-paced": upstream.ports["paced"]}.items()
        ]
    }
    path = directory / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [str(Path(python).with_name("litellm")), "--config", str(path), "--host", HOST, "--port", str(port)]
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with child([*command, "--telemetry", "False"], **quiet) as process:
        wait_http(f"http://{HOST}:{port}/health/liveliness", 120)
        models = {name: "direct-paced" if name == "paced" else "direct" for name in LOADS}
        yield Server("litellm", dict.fromkeys(LOADS, port), models, {"proxy": process.pid, **upstream.pids})


async def load_synthetic(fleet: FleetProcess, checkpoint: Path) -> dict[str, int]:
    """Catalogue and load the two synthetic models; the pids of their fronts and ranks."""
    pids = {}
    async with await Bus.connect(fleet.bus_settings(), kind="cli", ident="bench") as bus:
        plan, view = Bucket(bus, PLAN), Fleet(bus)
        await view.start()
        for model, rate in ((SATURATED, 0), (PACED, PACE_TOKENS_PER_S)):
            record = ModelRecord(
                id=model, source=str(checkpoint), backend="synthetic", options={"tokens_per_s": rate}, max_slots=64
            )
            await plan.put(model_key(model), encode(record))
            await plan.put(intent_key(model), encode(IntentRecord(model=model, want="loaded", by="bench")))
        for model in (SATURATED, PACED):
            name = model.removeprefix("synthetic-")

            def is_ready(fleet: Fleet, model: str = model) -> bool:
                return any(r.state == "ready" for r in fleet.replicas_of(model))

            await view.wait_for(is_ready, timeout_s=60)
            replica = next(r for r in view.replicas_of(model) if r.state == "ready")
            pids[f"front ({name})"], pids[f"rank ({name})"] = replica.pids[:2]
        await view.close()
    return pids


@contextmanager
def plexus(directory: Path) -> Iterator[Server]:
    """A whole fleet on this machine."""
    checkpoint = make_checkpoint(directory / "words")  # its tokeniser is what the synthetic back end speaks with
    spacious = make_checkpoint(directory / "spacious", max_position_embeddings=1 << 18)
    with FleetProcess(directory, "--model", checkpoint) as fleet:
        fleet.started()
        pids = uvloop.run(load_synthetic(fleet, spacious))
        models = {name: PACED if name == "paced" else SATURATED for name in LOADS}
        port = int(fleet.api.split(":")[2].split("/")[0])
        everything = {**fleet.now().pids, **pids}
        yield Server("plexus", dict.fromkeys(LOADS, port), models, everything, bus=fleet.bus_settings())


def p50(values: list[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else math.nan


def chain_figures(loads: dict[str, list[Sample]]) -> dict[str, float]:
    """What a client sees of one server, medians of the rounds; nan for a load that was left out."""
    paced = [stream for sample in loads["paced"] for stream in sample.load.streams]
    return {
        "first token ms": p50([s.first_token_s * 1e3 for x in loads["first token"] for s in x.load.streams]),
        "streams/s": p50([len(x.load.streams) / x.load.wall_s for x in loads["requests"]]),
        "tokens/s": p50([x.load.events / x.load.wall_s for x in loads["saturated"]]),
        "paced ms/token": p50([(s.total_s - s.first_token_s) / (s.events - 4) * 1e3 for s in paced]),
    }


def cpu_figures(loads: dict[str, list[Sample]], process: str) -> dict[str, float]:
    """CPU of one process in µs: per token saturated and paced, and per request of one token."""
    figures = {}
    for name, unit in (("saturated", "token"), ("paced", "token"), ("requests", "request")):
        samples = loads[name]
        spent = [x.load.client_cpu_s if process == "client" else x.cpu_s[process] for x in samples]
        num = [len(x.load.streams) if unit == "request" else x.load.events for x in samples]
        figures[f"µs/{unit} {name}"] = p50([s / n * 1e6 for s, n in zip(spent, num, strict=True)])
    return figures


def report(
    samples: dict[str, dict[str, list[Sample]]],
    idle: dict[str, float],
    floor_s: list[float],
    turns_s: list[list[float]],
) -> dict[str, object]:
    """Print the tables; the same figures for JSON."""
    console = Console(width=120)
    chains = {server: chain_figures(loads) for server, loads in samples.items()}
    base = chains["direct"]
    table = Table("server", "first token ms", "added ms", "streams/s", "tokens/s", "of direct", "paced ms/token")
    for server, row in chains.items():
        added, ratio = row["first token ms"] - base["first token ms"], row["tokens/s"] / base["tokens/s"]
        table.add_row(
            server,
            f"{row['first token ms']:.2f}",
            f"{added:.2f}",
            f"{row['streams/s']:.0f}",
            f"{row['tokens/s']:.0f}",
            f"{ratio:.2f}",
            f"{row['paced ms/token']:.2f}",
        )
    floor_ms = p50(floor_s) * 1e3
    table.add_row("floor", "", f"{floor_ms:.2f}", "", "", "", "")
    console.print(table)
    processes = {
        server: {
            process: cpu_figures(loads, process)
            for process in [*next((found[0].cpu_s for found in loads.values() if found), ()), "client"]
        }
        for server, loads in samples.items()
    }
    table = Table("server", "process", *next(iter(processes["direct"].values())))
    for server, rows in processes.items():
        for process, figures in rows.items():
            table.add_row(server, process, *(f"{figure:.1f}" for figure in figures.values()))
    console.print(table)
    console.print("idle, share of a core:", ", ".join(f"{name} {share:.2%}" for name, share in idle.items()))
    turns_ms = [p50([times[number] * 1e3 for times in turns_s]) for number in range(NUM_TURNS)]
    later_ms = p50([seconds * 1e3 for times in turns_s for seconds in times[1:]])
    if turns_s:
        console.print(
            f"first token of a long conversation: {turns_ms[0]:.0f} ms, of its later turns: {later_ms:.0f} ms"
        )
    figures = {"chains": chains, "floor ms": floor_ms, "cpu": processes, "idle core share": idle}
    return figures | {"turns ms": turns_ms}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--litellm", metavar="PYTHON", help="python of an environment with litellm[proxy]")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*LOADS, TURNS],
        default=[*LOADS, TURNS],
        metavar="LOAD",
        help=", ".join([*LOADS, TURNS]),
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plexus-bench-")))
        servers = [stack.enter_context(direct())]
        servers.append(stack.enter_context(plexus(directory)))
        if options.litellm:
            servers.append(stack.enter_context(litellm(options.litellm, servers[0], directory)))
        fleet = servers[1]
        time.sleep(SETTLE_S)
        before = {process: cpu_seconds(pid) for process, pid in fleet.pids.items()}
        time.sleep(IDLE_S)  # what is measured is that nothing happens
        idle = {process: (cpu_seconds(pid) - before[process]) / IDLE_S for process, pid in fleet.pids.items()}
        samples: dict[str, dict[str, list[Sample]]] = {s.name: {name: [] for name in LOADS} for s in servers}
        floor_s: list[float] = []
        turns_s: list[list[float]] = []
        for index in range(options.rounds + 1):
            if fleet.bus is not None and "first token" in options.only:
                seconds = uvloop.run(floor.run(fleet.bus, LOADS["first token"][1]))
                floor_s += seconds if index else []
            if TURNS in options.only:
                seconds = uvloop.run(converse(fleet))
                turns_s += [seconds] if index else []
            for name in filter(LOADS.__contains__, options.only):
                for server in servers:
                    sample = uvloop.run(measure(server, name))
                    if index:  # the first round warms up
                        samples[server.name][name].append(sample)
            print(f"round {index} of {options.rounds} done", file=sys.stderr)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {options.rounds} rounds")
    figures = report(samples, idle, floor_s, turns_s)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
