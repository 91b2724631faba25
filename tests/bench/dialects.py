"""What each API costs the gateway: ``python -m tests.bench.dialects [--rounds N] [--json FILE]``.

The same requests in every dialect through one gateway, with the synthetic back end behind a real front and queue; CPU
time of the gateway's process, all of it. A request is one of one token; a token is what a longer stream costs beyond
that, as fast as it goes and at 50 tokens/s. Embeddings are one vector each, from a small real encoder.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from gateway.cli.intents import put_intent, put_model
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import IntentRecord, ModelRecord
from tests.bench.dispatch import HOST, PACED, PROMPT, SATURATED, Server, cpu_seconds, plexus
from tests.support import embedders

EMBEDDER = "encoder"
LOADS = {  # name: (clients, requests each, tokens)
    "request": (16, 25, 1),
    "token": (64, 2, 256),
    "paced token": (64, 1, 200),
}
Body = Callable[[int], dict[str, Any]]
TURNS = [{"role": "user", "content": PROMPT}]


@dataclass(frozen=True)
class Dialect:
    """A row: where its requests go, and a body for an answer of so many tokens."""

    path: str
    body: Body
    is_streamed: bool = True


DIALECTS = {
    "chat": Dialect("/v1/chat/completions", lambda tokens: {"messages": TURNS, "max_tokens": tokens}),
    "completions": Dialect("/v1/completions", lambda tokens: {"prompt": PROMPT, "max_tokens": tokens}),
    "messages": Dialect("/v1/messages", lambda tokens: {"messages": TURNS, "max_tokens": tokens}),
    "responses": Dialect("/v1/responses", lambda t: {"input": PROMPT, "max_output_tokens": t, "store": False}),
    "responses, stored": Dialect("/v1/responses", lambda tokens: {"input": PROMPT, "max_output_tokens": tokens}),
    "embeddings": Dialect("/v1/embeddings", lambda _: {"input": PROMPT, "encoding_format": "base64"}, False),
}


def request(dialect: Dialect, model: str, tokens: int) -> bytes:
    """The bytes of a request on a connection of its own."""
    fields: dict[str, Any] = {"stream": True, "temperature": 0} if dialect.is_streamed else {}
    body = json.dumps({"model": model} | fields | dialect.body(tokens)).encode()
    head = (
        f"POST {dialect.path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Authorization: Bearer sk-bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run_load(port: int, data: bytes, clients: int, each: int) -> None:
    """So many clients at once, each with its requests one after another. Raises RuntimeError for a bad answer."""

    async def client() -> None:
        for _ in range(each):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(data)
            answer = await reader.read()
            writer.close()
            if not answer.startswith(b"HTTP/1.1 200") or b'"error":{' in answer or b"event: error" in answer:
                raise RuntimeError(answer[-400:].decode(errors="replace"))

    await asyncio.gather(*(client() for _ in range(clients)))


async def load_embedder(server: Server, path: Path) -> None:
    """A model for the last row."""
    assert server.bus is not None
    async with await Bus.connect(server.bus, kind="cli", ident="bench") as bus, Fleet(bus) as view:
        await put_model(bus, ModelRecord(id=EMBEDDER, source=str(path), task="embed"))
        await put_intent(bus, IntentRecord(model=EMBEDDER, want="loaded", by="bench"))
        await view.wait_for(lambda view: any(r.state == "ready" for r in view.replicas_of(EMBEDDER)), timeout_s=60)


def measure(server: Server, name: str, load: str) -> float:
    """CPU seconds of the gateway for one load in one dialect."""
    dialect, (clients, each, tokens) = DIALECTS[name], LOADS[load]
    model = EMBEDDER if not dialect.is_streamed else PACED if load == "paced token" else SATURATED
    before = cpu_seconds(server.pids["gateway"])
    uvloop.run(run_load(server.ports["requests"], request(dialect, model, tokens), clients, each))
    return cpu_seconds(server.pids["gateway"]) - before


def figures(spent: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """µs per request and per token, by dialect."""
    rows = {}
    for name, loads in spent.items():
        median = {load: statistics.median(values) for load, values in loads.items()}
        clients, each, _ = LOADS["request"]
        row = {"request": median["request"] / (clients * each) * 1e6}
        for load in [load for load in median if load != "request"]:
            clients, each, tokens = LOADS[load]
            row[load] = (median[load] * 1e6 - clients * each * row["request"]) / (clients * each * (tokens - 1))
        rows[name] = row
    return rows


def report(rows: dict[str, dict[str, float]]) -> None:
    """Print the table, each figure with its ratio to chat's."""
    table = Table("µs of gateway CPU", *(f"per {load}" for load in LOADS))
    for name, row in rows.items():
        cells = [f"{row[load]:.1f}  ({row[load] / rows['chat'][load]:.2f})" if load in row else "" for load in LOADS]
        table.add_row(name, *cells)
    Console(width=120).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    spent: dict[str, dict[str, list[float]]] = {
        name: {load: [] for load in (LOADS if dialect.is_streamed else ["request"])}
        for name, dialect in DIALECTS.items()
    }
    with tempfile.TemporaryDirectory(prefix="plexus-bench-") as folder, plexus(Path(folder)) as server:
        uvloop.run(load_embedder(server, embedders.make_bert(Path(folder) / "encoder")))
        for name in DIALECTS:
            measure(server, name, "request")  # a first time, for what is made once
        for index in range(options.rounds):
            for load in LOADS:
                for name in [name for name in DIALECTS if load in spent[name]]:
                    spent[name][load].append(measure(server, name, load))
            print(f"round {index + 1} of {options.rounds} done", file=sys.stderr)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {options.rounds} rounds")
    rows = figures(spent)
    report(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
