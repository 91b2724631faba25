"""The whole story on one machine: ``python -m tests.system.story``.

Two gateways and two workers, all real processes. A model that nobody loaded is asked for; the job waits in the queue;
an operator loads the model; the answer streams. Then a rank, a front and the broker are killed with SIGKILL in the
middle of running streams, and every text must equal the one of the undisturbed run: float32, random weights, greedy
and sampled. At the end the queue is empty, and no process and no port is left.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.names import JOBS, PLAN, intent_key, model_key
from shared.records import IntentRecord, ModelRecord, ReplicaRecord
from tests.support.fleet_process import FleetProcess, Running
from tests.support.tiny import make_checkpoint

TOKENS = 240
KILL_AFTER = 20  # events that every stream has shown when the kill comes
KILLS = 4  # tries to kill something in mid-stream
PROMPTS = ["Who lights the lamp?", "What is written in the book?", "Tell me of the river.", "Count to twelve."]


@dataclass
class Answer:
    """One stream as its client saw it."""

    text: str = ""
    events: int = 0
    finish: str | None = None
    error: dict[str, Any] | None = None
    comments: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)


def say(text: str) -> None:
    """One line of the story."""
    print(f"  {text}", flush=True)


async def ask(api: str, model: str, number: int, answer: Answer) -> Answer:
    """Stream one answer; even numbers are greedy, odd ones sampled with a fixed seed."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "seed": number,
        "temperature": 0 if number % 2 == 0 else 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{api}/chat/completions", json=body) as response,
    ):
        if response.status_code != 200:
            answer.error = {"status": response.status_code, "body": (await response.aread()).decode()}
            return answer
        async for line in response.aiter_lines():
            if line.startswith(":"):
                answer.comments.append(line)
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            answer.error = chunk.get("error") or answer.error
            answer.usage = chunk.get("usage") or answer.usage
            for choice in chunk.get("choices", []):
                answer.events += 1
                answer.text += choice["delta"].get("content") or ""
                answer.text += choice["delta"].get("reasoning_content") or ""
                answer.finish = choice["finish_reason"] or answer.finish
    return answer


class Story:
    """The fleet and what is asked of it."""

    def __init__(self, fleet: FleetProcess, second_api: str, second_metrics: str, bus: Bus, view: Fleet) -> None:
        self.fleet, self.bus, self.view = fleet, bus, view
        self.apis = [fleet.api, second_api]
        self.metrics = [str(fleet.facts["metrics"]), second_metrics]
        self.undisturbed: list[str] = []

    async def all_at_once(self, model: str, during: Callable[[], Awaitable[None]] | None = None) -> list[Answer]:
        """Eight streams through both gateways; `during` runs when each has shown some tokens."""
        answers = [Answer() for _ in range(8)]
        tasks = [asyncio.create_task(ask(self.apis[i % 2], model, i, answers[i])) for i in range(8)]
        if during is not None:

            async def all_run() -> bool:
                return all(a.events >= KILL_AFTER or t.done() for a, t in zip(answers, tasks, strict=True))

            await self.until("every stream runs", all_run, poll_s=0.005)
            assert any(a.finish is None for a in answers), "every stream ended before the kill: ask for more tokens"
            await during()
        return list(await asyncio.gather(*tasks))

    def check(self, answers: list[Answer], what: str) -> None:
        """Every text whole and equal to the undisturbed one."""
        for number, (answer, expected) in enumerate(zip(answers, self.undisturbed, strict=True)):
            assert answer.error is None, f"{what}, stream {number}: {answer.error}"
            assert answer.finish == "length", f"{what}, stream {number} ended with {answer.finish}"
            assert answer.text == expected, f"{what}, stream {number}:\n{expected!r}\nbecame\n{answer.text!r}"
            assert answer.usage["completion_tokens"] == TOKENS

    async def redispatches(self) -> float:
        """How often jobs were published again, by both gateways."""
        async with httpx.AsyncClient() as client:
            pages = [(await client.get(url)).text for url in self.metrics]
        lines = [line for page in pages for line in page.splitlines()]
        return sum(float(line.split()[-1]) for line in lines if line.startswith("plexus_redispatches_total"))

    async def jobs_left(self) -> int:
        """Messages in the queue."""
        return int((await self.bus.api(f"STREAM.INFO.{JOBS}", {}))["state"]["messages"])

    def busiest(self, model: str) -> ReplicaRecord:
        """The ready replica with most jobs."""
        ready = [r for r in self.view.replicas_of(model) if r.state == "ready"]
        return max(ready, key=lambda replica: replica.running)

    async def until(
        self, what: str, is_so: Callable[[], Awaitable[bool]], timeout_s: float = 30.0, poll_s: float = 0.05
    ) -> None:
        """Poll until it is so. Raises AssertionError naming `what`."""
        deadline = time.monotonic() + timeout_s
        while not await is_so():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
            await asyncio.sleep(poll_s)

    async def both_ready(self, model: str) -> None:
        """Until both workers have the model ready."""

        async def is_so() -> bool:
            return sum(r.state == "ready" for r in self.view.replicas_of(model)) == 2

        await self.until(f"{model} ready on both workers", is_so)

    # --- the chapters ----------------------------------------------------------------------------------------

    async def cold_model(self, path: Path) -> None:
        """Ask for a model that is not loaded; it waits in the queue; load it; it streams."""
        plan = Bucket(self.bus, PLAN)
        await plan.put(model_key("cold"), encode(ModelRecord(id="cold", source=str(path))))
        await plan.put(intent_key("cold"), encode(IntentRecord(model="cold", want="unloaded", by="story")))
        await self.view.wait_for(lambda view: "cold" in view.models, timeout_s=5)
        answer = Answer()
        task = asyncio.create_task(ask(self.apis[1], "cold", 0, answer))

        async def waits() -> bool:
            assert not task.done(), f"the job did not wait: {answer}"
            return await self.jobs_left() == 1

        await self.until("the job waits in the queue", waits)

        async def is_told() -> bool:
            return bool(answer.comments)

        await self.until("the waiting client is told so", is_told)
        say(f"cold model asked for; the client hears {answer.comments[0]!r}")
        await asyncio.to_thread(self.fleet.operate, "load", "cold", "--wait")
        await task
        assert (answer.error, answer.finish) == (None, "length"), answer
        say(f"plexus load cold: answered, {answer.usage['completion_tokens']} tokens")
        await asyncio.to_thread(self.fleet.operate, "unload", "cold", "--wait")

    async def killed(self, model: str) -> None:
        """Kill a rank, a front and the broker, each in mid-stream."""
        self.undisturbed = [answer.text for answer in await self.all_at_once(model)]
        assert len(set(self.undisturbed)) > 4, "the streams should differ"
        say("eight streams undisturbed")
        for name, index in (("rank", 1), ("front", 0)):

            async def kill(index: int = index) -> None:
                os.kill(self.busiest(model).pids[index], signal.SIGKILL)

            moved = 0.0
            for _ in range(KILLS):  # what ran on the victim may have ended between the look and the kill
                before = await self.redispatches()
                self.check(await self.all_at_once(model, kill), f"{name} killed")
                moved = await self.redispatches() - before
                await self.both_ready(model)
                if moved:
                    break
            assert moved > 0, f"nothing ran on the killed {name}, {KILLS} times"
            say(f"{name} killed in mid-stream: every text equal, {moved:.0f} jobs resumed elsewhere")

        async def kill_broker() -> None:
            os.kill(self.fleet.now().pids["nats"], signal.SIGKILL)

        before = await self.redispatches()
        self.check(await self.all_at_once(model, kill_broker), "broker killed")
        regenerated = await self.redispatches() - before
        assert regenerated == 0, f"{regenerated:.0f} jobs were computed again after the broker's restart"
        say("broker killed in mid-stream: every text equal, no token computed again")

    async def is_empty(self) -> None:
        """The queue drains."""

        async def is_so() -> bool:
            return await self.jobs_left() == 0

        await self.until("JOBS is empty", is_so)
        say("JOBS is empty")


@contextmanager
def second_gateway(fleet: FleetProcess, folder: Path) -> Iterator[Running]:
    """Another gateway of the same fleet, ready."""
    bus = fleet.bus_settings()
    config = folder / "gateway.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        f'[bus]\nurl = "{bus.url}"\nuser = "{bus.user}"\npassword = "{bus.password}"\n'
    )
    with Running(folder / "serve.log", "serve", "--config", config, "--json") as gateway:
        yield gateway
        assert gateway.end() == 0, gateway.said()


async def chapters(fleet: FleetProcess, gateway: Running, cold: Path) -> None:
    """Everything that happens while the fleet is up."""
    facts = gateway.line()
    async with await Bus.connect(fleet.bus_settings(), kind="cli", ident="story") as bus, Fleet(bus) as view:
        story = Story(fleet, f"{facts['url']}/v1", facts["metrics_url"], bus, view)
        await story.both_ready("warm")
        await story.cold_model(cold)
        await story.killed("warm")
        await story.is_empty()


def tell(folder: Path) -> None:
    """The story from beginning to end. Raises AssertionError at the first untruth."""
    warm = make_checkpoint(folder / "warm", "qwen3", seed=3)
    cold = make_checkpoint(folder / "cold", "llama", seed=4)
    with FleetProcess(folder, "--workers", "2", "--model", warm) as fleet:
        fleet.started()
        say("a fleet with two workers is up")
        with second_gateway(fleet, folder) as gateway:
            asyncio.run(chapters(fleet, gateway, cold))
            processes = [*fleet.tree(), *gateway.tree()]
            ports = {
                c.laddr.port
                for p in fleet.left() + gateway.left()
                for c in p.net_connections("tcp")
                if c.status == "LISTEN"
            }
        assert fleet.end() == 0, fleet.said()
        left = [*fleet.left(), *gateway.left()]
    assert not left, f"left behind: {left}"
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
    assert len(ports) >= 5
    assert not ports & listening, f"ports left open: {ports & listening}"
    say(f"stopped: none of {len(processes)} processes and {len(ports)} ports is left")


def main() -> None:
    """Tell it in a temporary directory."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plexus-story-") as directory:
        tell(Path(directory))
    print(f"the story is true ({time.monotonic() - started:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
