"""Demand on a fleet: a trace of arrivals that the same seed gives again, and what became of each request."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

TIMEOUT = httpx.Timeout(600.0)  # of a slow machine; how long it took is told, and judged by nobody


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    at_s: float
    model: str
    max_tokens: int
    stream: bool


@dataclass
class Outcome:
    """What became of it. `wait_s` is the time to the first text, of one that is not streamed to its end."""

    arrival: Arrival
    status: int = 0
    wait_s: float = 0.0
    total_s: float = 0.0
    problem: str = ""


@dataclass
class Tally:
    """The outcomes of a trace."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Of every request that failed."""
        return [f"{one.arrival.model}: {one.status} {one.problem}" for one in self.outcomes if one.problem]

    def quantile(self, share: float) -> float:
        """Of the waits, in seconds."""
        waits = sorted(one.wait_s for one in self.outcomes)
        return waits[min(len(waits) - 1, int(share * len(waits)))]


def trace(
    models: Sequence[str],
    seconds: float,
    *,
    per_s: float,
    seed: int = 1,
    phase_s: float = 20.0,
    steepness: float = 1.0,
) -> list[Arrival]:
    """Poisson arrivals. A few models get most of them, the more so the steeper; in each phase it is others."""
    dice = random.Random(seed)
    arrivals: list[Arrival] = []
    now = 0.0
    while (now := now + dice.expovariate(per_s)) < seconds:
        turn = int(now / phase_s) * 3
        order = [models[(turn + index) % len(models)] for index in range(len(models))]
        model = dice.choices(order, [(rank + 1) ** -steepness for rank in range(len(order))])[0]
        arrivals.append(Arrival(now, model, dice.choice((4, 8, 16, 32)), dice.random() < 0.5))
    return arrivals


async def drive(apis: Sequence[str], arrivals: Sequence[Arrival]) -> Tally:
    """Send every request at its time, to one gateway after the other, and wait for all of them to end."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    tally, start = Tally(), time.monotonic()
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as http, asyncio.TaskGroup() as group:
        for number, arrival in enumerate(arrivals):
            await asyncio.sleep(max(0.0, start + arrival.at_s - time.monotonic()))
            outcome = Outcome(arrival)
            tally.outcomes.append(outcome)
            group.create_task(_send(http, apis[number % len(apis)], outcome))
    return tally


async def _send(http: httpx.AsyncClient, api: str, outcome: Outcome) -> None:
    arrival, start = outcome.arrival, time.monotonic()
    body = {
        "model": arrival.model,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": arrival.max_tokens,
        "ignore_eos": True,
        "stream": arrival.stream,
    }
    is_finished = False
    try:
        async with http.stream("POST", f"{api}/v1/chat/completions", json=body) as response:
            outcome.status = response.status_code
            async for line in response.aiter_lines():
                if '"error"' in line:
                    outcome.problem = line[:500]
                if not outcome.wait_s and ('"content"' in line and '"content":""' not in line):
                    outcome.wait_s = time.monotonic() - start
                is_finished = is_finished or '"finish_reason":"length"' in line.replace(" ", "")
    except httpx.HTTPError as error:
        outcome.problem = f"{type(error).__name__}: {error}"
    outcome.total_s = time.monotonic() - start
    outcome.wait_s = outcome.wait_s or outcome.total_s
    if not outcome.problem and (outcome.status != 200 or not is_finished):
        outcome.problem = "it did not end as it should"
