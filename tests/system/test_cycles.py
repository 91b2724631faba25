"""A hundred loads and unloads on one worker leave nothing behind. By hand: -m slow.

Every unload ends the processes that held the memory, so what could grow is the agent, its spare replica, and what it
forgets to end.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from shared.records import ModelRecord
from tests.support.fleet_process import wait_for
from tests.support.separate_fleet import SeparateFleet, Worker, models_toml
from tests.support.tiny import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

MB = 1 << 20
NUM_CYCLES = 100
NOISE = 32 * MB  # of the agent's own memory
HOST_NOISE = 256 * MB  # of what the host has free: others live there too


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SeparateFleet]:
    """A worker with room for one of two models."""
    records = [ModelRecord(id=id, source=str(make_checkpoint(tmp_path / id))) for id in ("a", "b")]
    (tmp_path / "models.toml").write_text(models_toml(records))
    with SeparateFleet(tmp_path / "fleet") as fleet:
        gateway = fleet.gateway(models=str(tmp_path / "models.toml"), eviction={"min_residency_s": 0.0})
        worker = fleet.worker("w1", 700 * MB, slots=4, prefill_tokens=64, enforce_memory=True)
        gateway.started()
        worker.started()
        yield fleet


def ask(fleet: SeparateFleet, model: str) -> None:
    """A short chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    httpx.post(f"{fleet.gateways[0].url}/v1/chat/completions", json=body, timeout=120).raise_for_status()


def settled(fleet: SeparateFleet, worker: Worker) -> tuple[int, int, int, list[psutil.Process]]:
    """With nothing loaded and the spare there: the agent's own memory, all of the tree's, what is free, who runs."""
    for model in ("a", "b"):
        fleet.operate("unload", model, "--wait")
    agent = psutil.Process(worker.process.pid)

    def family() -> list[psutil.Process] | None:
        children = agent.children(recursive=True)
        names = [" ".join(one.cmdline()) for one in children]
        is_spare_there = sum("--warm" in name for name in names) == 2
        return children if is_spare_there and worker.said().count("standby.ready") > 0 else None

    children = wait_for(family, 120)
    own = agent.memory_full_info().uss
    tree = own + sum(child.memory_full_info().uss for child in children)
    return own, tree, psutil.virtual_memory().available, children


def test_a_hundred_loads_and_unloads_give_everything_back(fleet: SeparateFleet) -> None:
    worker = fleet.workers["w1"]
    for model in ("a", "b"):  # what is imported and cached once
        ask(fleet, model)
    own, tree, available, children = settled(fleet, worker)
    seen: set[int] = set()
    samples = []
    for number in range(NUM_CYCLES):
        model = ("a", "b")[number % 2]
        fleet.operate("load", model, "--wait", timeout_s=120)
        ask(fleet, model)
        fleet.operate("unload", model, "--wait", timeout_s=120)
        seen |= {one.pid for one in psutil.Process(worker.process.pid).children(recursive=True)}
        samples.append(psutil.Process(worker.process.pid).memory_full_info().uss)
    own_after, tree_after, available_after, children_after = settled(fleet, worker)
    print(
        f"\nagent {own / MB:.1f} MB before, {own_after / MB:.1f} after (median {statistics.median(samples) / MB:.1f}); "
        f"tree {tree / MB:.0f} and {tree_after / MB:.0f}; host free {available / MB:.0f} and {available_after / MB:.0f}"
    )
    assert worker.said().count("replica.starting") >= NUM_CYCLES
    assert own_after - own < NOISE
    assert tree_after - tree < 2 * NOISE
    assert available - available_after < HOST_NOISE
    assert len(children_after) == len(children)
    left = {pid for pid in seen if psutil.pid_exists(pid)} - {one.pid for one in children_after}
    assert not left
