"""A hundred loads and unloads on one worker leave nothing behind. By hand: -m slow.

Every unload ends the processes that held the memory, so what could grow is the agent, its spare replica, and what it
forgets to end. Models with weights take a spare replica and its successors with them; the others are only quicker.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from shared.records import ModelRecord
from tests.support.fleet_process import wait_for
from tests.support.separate_fleet import SeparateFleet, Worker, models_toml
from tests.support.synthetic import synthetic_model, write_synthetic
from tests.support.tiny import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MB = 1 << 20
NUM_CYCLES = 100
NOISE = 32 * MB  # of the agent's own memory
TREE_NOISE = 96 * MB  # of all its processes: the same ones, at another moment of their lives
HOST_NOISE = 384 * MB  # of what the host has free: others live there too
SIZES = {"torch": 700 * MB, "synthetic": 300 * MB}  # of a worker with room for one model


@pytest.fixture(params=["synthetic", "torch"])
def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SeparateFleet]:
    """A worker with room for one of two models."""
    is_real = request.param == "torch"
    if is_real:
        records = [ModelRecord(id=id, source=str(make_checkpoint(tmp_path / id))) for id in ("a", "b")]
    else:
        records = [synthetic_model(id, write_synthetic(tmp_path / id)) for id in ("a", "b")]
    (tmp_path / "models.toml").write_text(models_toml(records))
    with SeparateFleet(tmp_path / "fleet") as fleet:
        gateway = fleet.gateway(models=str(tmp_path / "models.toml"), eviction={"min_residency_s": 0.0})
        size = SIZES[request.param]
        worker = fleet.worker("w1", size, slots=4, prefill_tokens=64, enforce_memory=True, standby=is_real)
        gateway.started()
        worker.started()
        yield fleet


def ask(fleet: SeparateFleet, model: str) -> None:
    """A short chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    httpx.post(f"{fleet.gateways[0].url}/v1/chat/completions", json=body, timeout=300).raise_for_status()


def at_rest(worker: Worker) -> tuple[int, int, int, list[psutil.Process]]:
    """With one model loaded and the spare, if there is one: the agent's own memory, the tree's, what is free, who."""
    agent = psutil.Process(worker.process.pid)

    def family() -> list[psutil.Process] | None:
        said = worker.said()
        if "standby=True" in said and said.rfind("replica.starting") > said.rfind("standby.ready"):
            return None  # the next spare is still to come
        return agent.children(recursive=True)

    children = wait_for(family, 120)
    own = agent.memory_full_info().uss
    tree = own + sum(child.memory_full_info().uss for child in children)
    return own, tree, psutil.virtual_memory().available, children


def test_a_hundred_loads_and_unloads_give_everything_back(fleet: SeparateFleet) -> None:
    worker = fleet.workers["w1"]
    for model in ("a", "b"):  # what is imported and cached once
        ask(fleet, model)
    own, tree, available, children = at_rest(worker)
    seen: set[int] = set()
    for number in range(NUM_CYCLES):  # each displaces the other
        ask(fleet, ("a", "b")[number % 2])
        seen |= {one.pid for one in psutil.Process(worker.process.pid).children(recursive=True)}
    own_after, tree_after, available_after, children_after = at_rest(worker)
    print(
        f"\nagent {own / MB:.1f} MB before, {own_after / MB:.1f} after; all its processes {tree / MB:.0f} and "
        f"{tree_after / MB:.0f}; host free {available / MB:.0f} and {available_after / MB:.0f}"
    )
    assert worker.said().count("replica.starting") >= NUM_CYCLES + 2
    assert own_after - own < NOISE
    assert tree_after - tree < TREE_NOISE
    assert available - available_after < HOST_NOISE
    assert len(children_after) == len(children)
    left = {pid for pid in seen if psutil.pid_exists(pid)} - {one.pid for one in children_after}
    assert not left
