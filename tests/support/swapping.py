"""Mixed demand on a fleet too small for it, by one planner or another: what it came to."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gateway.cli import events
from shared.fleet import Fleet
from shared.records import EventRecord, ModelRecord, ReplicaRecord
from tests.support.separate_fleet import GATEWAY, SeparateFleet, models_toml
from tests.support.synthetic import synthetic_model, write_synthetic
from tests.support.tiny import make_checkpoint
from tests.support.traffic import Arrival, Tally, drive, trace

MB = 1 << 20
MODELS = [f"model-{number}" for number in range(10)]
MODEL_BYTES = {"torch": 680 * MB, "synthetic": 260 * MB}  # a little over what is reserved for each of them
WORKERS = {"small": 1, "middle": 2, "large": 3}  # models that each has memory for
NAIVE = (sys.executable, "-P", "-m", "tests.support.naive_planner")
SETTINGS: dict[str, Any] = {
    "placement": {"starvation_bound_s": 10.0, "scale_up_after_s": 600.0},
    "eviction": {"min_residency_s": 2.0},
}


@dataclass
class Report:
    """What happened."""

    tally: Tally
    events: list[EventRecord] = field(default_factory=list)
    most_of_total: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes, by worker

    @property
    def num_requests(self) -> int:
        """Sent."""
        return len(self.tally.outcomes)

    @property
    def problems(self) -> list[str]:
        """Of requests that failed."""
        return self.tally.problems

    @property
    def statuses(self) -> set[int]:
        """Of HTTP."""
        return {one.status for one in self.tally.outcomes}

    @property
    def refusals(self) -> list[str]:
        """Loads that failed."""
        return [f"{one.model} on {one.worker}: {one.reason}" for one in self.events if one.kind == "failed"]

    @property
    def num_swaps(self) -> int:
        """Replicas that were unloaded."""
        return sum(one.kind == "gone" for one in self.events)

    @property
    def swaps_per_1000(self) -> float:
        """Of the requests."""
        return 1000 * self.num_swaps / self.num_requests


def run(
    folder: Path,
    *,
    seconds: float,
    per_s: float,
    is_naive: bool = False,
    backend: Literal["torch", "synthetic"] = "torch",
    seed: int = 1,
    phase_s: float = 20.0,
    steepness: float = 1.5,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Make ten small models and a fleet, fill it, send a trace of arrivals, and look at what came of it.

    Models of the back end torch have weights; the others load within a second or two.
    """
    if backend == "torch":
        paths = [make_checkpoint(folder / model, seed=number) for number, model in enumerate(MODELS)]
        records = [ModelRecord(id=model, source=str(path)) for model, path in zip(MODELS, paths, strict=True)]
    else:
        path = write_synthetic(folder / "model")
        records = [synthetic_model(model, path, tokens_per_s=100.0) for model in MODELS]
    (folder / "models.toml").write_text(models_toml(records))
    arrivals = trace(MODELS, seconds, per_s=per_s, seed=seed, phase_s=phase_s, steepness=steepness)
    with SeparateFleet(folder / "fleet") as fleet:
        program = NAIVE if is_naive else GATEWAY
        for _ in range(2):
            fleet.gateway(program, models=str(folder / "models.toml"), **SETTINGS)
        for name, room in WORKERS.items():
            memory = room * MODEL_BYTES[backend]
            standby = backend == "torch"
            fleet.worker(name, memory, cores=1, slots=4, prefill_tokens=64, enforce_memory=True, standby=standby)
        for process in (*fleet.gateways, *fleet.workers.values()):
            process.started()
        say("started")
        return asyncio.run(_measure(fleet, arrivals, say))


async def _measure(fleet: SeparateFleet, arrivals: list[Arrival], say: Callable[[str], None]) -> Report:
    bus = await fleet.operator()
    async with bus, Fleet(bus) as records:
        most = dict.fromkeys(WORKERS, 0)

        def look(key: str, record: object) -> None:
            if isinstance(record, ReplicaRecord):
                here = [one.reserved_bytes for one in records.replicas.values() if one.worker == record.worker]
                most[record.worker] = max(most[record.worker], sum(here))

        records.on_change(look)
        apis = [one.url for one in fleet.gateways]
        # Full first, so that only what is displaced counts.
        filling = [Arrival(0.0, model, 4, stream=False) for model in MODELS[: sum(WORKERS.values())]]
        assert (await drive(apis, filling)).problems == []
        say("full")
        full_at = time.time()
        tally = await drive(apis, arrivals)
        found = await events.read(bus, full_at)
        totals = {name: records.workers[name].devices[0].total_bytes for name in WORKERS}
        return Report(tally, found, {name: (most[name], total) for name, total in totals.items()})
