"""An engine over several ranks: the first in this process, the others as they always are.

Greedy output in float32 equals transformers' own `generate`, token for token, whatever else is in the batch.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.failing_follower import TOKEN, fail_at
from tests.support.models import generate, make_model
from tests.support.ranks import rank_config
from tests.support.stepping import drain, make_job
from worker.engine.cache_space import WindowCap
from worker.engine.engine import Engine
from worker.engine.errors import GroupLost, OutOfMemory
from worker.engine.fast.plain_decoder import BoundPlainDecoder
from worker.engine.parallel.group import Group
from worker.engine.parallel.messages import Load, Pack
from worker.engine.parallel.prepare import prepare_any
from worker.engine.prepared import Prepared
from worker.engine.runner import TorchRunner
from worker.models.division import FAMILIES, Division

FAILING = (sys.executable, "-m", "tests.support.failing_follower")
BLOCK, STEP, NEW = 4, 12, 14
CPU = torch.device("cpu")


@dataclass
class Ranks:
    """A group, and why it ended."""

    group: Group
    lost: list[str]
    is_lost: threading.Event


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    lost: list[str] = []
    is_lost = threading.Event()

    def note(reason: str, kind: str) -> None:
        lost.append(reason)
        is_lost.set()

    followers = [f"cpu:{number}" for number in range(1, request.param)]
    config = rank_config(tmp_path_factory.mktemp("none"), device="cpu:0", followers=followers)
    group = Group(config, note, FAILING)
    try:
        yield Ranks(group, lost, is_lost)
    finally:
        group.close()
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tmp_path_factory.mktemp(family) for family in FAMILIES}


def prepare(ranks: Ranks, folder: Path, family: str, **changes: object) -> Prepared:
    if not any(folder.iterdir()):
        make_model(family).save_pretrained(folder)
    values = {"quantization": "", "is_packed": True, "is_native": True, "is_device": False} | changes
    wanted = Load(path=str(folder), dtype="float32", **values)  # type: ignore[arg-type]
    return prepare_any(ranks.group, wanted, Division.of(folder, ranks.group.size), CPU, lambda done, total: None)[1]


def make_engine(prepared: Prepared, *, num_blocks: int = 64, block: int = BLOCK, **options: object) -> Engine:
    windows = [shape.window for shape in prepared.shapes if shape.window]
    cap = WindowCap(max(windows), 40) if windows else None
    num_host_blocks = int(options.get("num_host_blocks", 0))  # type: ignore[call-overload]
    runner = TorchRunner(prepared, "cpu", torch.float32, num_blocks, block, cap=cap, num_host_blocks=num_host_blocks)
    values: dict[str, object] = {"slots": 8, "prefill_tokens": STEP, "context_limit": 200} | options
    return Engine(runner, num_blocks=num_blocks, block_tokens=block, cap=cap, **values)  # type: ignore[arg-type]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, 250, (length,), generator=generator).tolist()


def expect(family: str, prompt: list[int], num_tokens: int = NEW) -> list[int]:
    return generate(family, tuple(prompt), num_tokens)


def check(engine: Engine, family: str, prompts: list[list[int]], num_tokens: int = NEW) -> dict[tuple[str, int], int]:
    """All at once give what each gives alone; returns what was found in the cache."""
    for number, prompt in enumerate(prompts):
        engine.submit(make_job(str(number), prompt, num_tokens))
    found = drain(engine)
    for number, prompt in enumerate(prompts):
        assert found.ids[str(number), 0] == expect(family, prompt, num_tokens)
    return found.cached


PROMPTS = [prompt_of(length) for length in (3, STEP, STEP + 1, 33, 2 * BLOCK)]


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one == "gemma3_text" else pytest.mark.slow) for one in FAMILIES],
)
def test_batches_chunks_and_prefixes(ranks: Ranks, checkpoints: dict[str, Path], family: str) -> None:
    prepared = prepare(ranks, checkpoints[family], family)
    assert prepared.path == "shared torch"
    engine = make_engine(prepared)
    check(engine, family, PROMPTS)
    cached = check(engine, family, [*PROMPTS[3:], [*PROMPTS[3], 7, 7]], 5)  # prefixes of blocks, and of a part of one
    assert cached["0", 0] >= 28 and cached["2", 0] >= 32


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_preemption_blocks_from_host_memory_and_guesses(
    ranks: Ranks, checkpoints: dict[str, Path], family: str
) -> None:
    prepared = prepare(ranks, checkpoints[family], family)
    check(make_engine(prepared, num_blocks=16), family, PROMPTS)  # too few for all: some begin again
    tight = make_engine(prepared, num_blocks=16, num_host_blocks=64)
    check(tight, family, PROMPTS)
    check(tight, family, PROMPTS)  # what was spilled comes back
    repeating = prompt_of(6) * 4
    check(make_engine(prepared, speculate=True), family, [repeating, prompt_of(5)], 30)


def test_the_decoder_for_devices_computes_the_same(ranks: Ranks, checkpoints: dict[str, Path]) -> None:
    prepared = prepare(ranks, checkpoints["qwen3"], "qwen3", is_device=True)
    assert prepared.path == "shared device"
    check(make_engine(prepared, num_blocks=8, block=256), "qwen3", [prompt_of(length) for length in (3, STEP + 1, 33)])


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_shares_are_smaller(ranks: Ranks, checkpoints: dict[str, Path], quantization: str) -> None:
    whole = prepare(ranks, checkpoints["llama"], "llama")
    less = prepare(ranks, checkpoints["llama"], "llama", quantization=quantization)
    assert less.path == "shared torch"  # and not found wrong: see the log of what was tried
    assert less.weights_bytes < whole.weights_bytes * 0.6
    engine = make_engine(less)
    engine.submit(make_job("a", prompt_of(20), NEW))
    assert len(drain(engine).ids["a", 0]) == NEW


def test_want_of_memory_on_any_rank_fails_the_one_job(
    ranks: Ranks, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(prepare(ranks, checkpoints["qwen3"], "qwen3"))
    good, bad = prompt_of(9), [TOKEN, 5, 6, 8]
    engine.submit(make_job("good", good, NEW))
    engine.submit(make_job("bad", bad, NEW))
    found = drain(engine)
    assert found.ids["good", 0] == expect("qwen3", good)
    refused = found.refused["bad"]
    assert refused.kind == "capacity"
    assert "rank 1 on cpu:1: MemoryError: no room for this" in refused.message
    monkeypatch.setattr(BoundPlainDecoder, "forward", BoundPlainDecoder.forward)  # to be put back
    monkeypatch.setattr(BoundPlainDecoder, "_attend", BoundPlainDecoder._attend)
    fail_at(250)  # here, on the first rank
    engine.submit(make_job("good", good, NEW))
    engine.submit(make_job("bad", [250, 5], NEW))
    found = drain(engine)
    assert found.ids["good", 0] == expect("qwen3", good)
    assert found.refused["bad"].message.endswith("no room for this")
    check(engine, "qwen3", [prompt_of(20)])


def test_want_of_memory_while_loading_is_told_as_such(tmp_path: Path) -> None:
    program = """
import os
from worker.engine.parallel import follower

class Full(follower.Follower):
    def __init__(self, join):
        pass

    def do(self, message):
        raise MemoryError("too small")

follower.Follower = Full
os._exit(follower.main())
"""
    lost: list[tuple[str, str]] = []
    is_lost = threading.Event()

    def note(reason: str, kind: str) -> None:
        lost.append((reason, kind))
        is_lost.set()

    config = rank_config(tmp_path, device="cpu:0", followers=["cpu:1"])
    group = Group(config, note, (sys.executable, "-c", program))
    try:
        group.send(Pack())
        with pytest.raises(OutOfMemory, match="rank 1 on cpu:1: MemoryError: too small"):
            group.answers()
        assert is_lost.wait(10.0)
        reason = "rank 1 on cpu:1: MemoryError: too small; a replica's ranks end together"
        assert lost == [(reason, "out_of_memory")]
    finally:
        group.close()


def test_a_rank_that_ends_is_told_with_its_reason(ranks: Ranks, checkpoints: dict[str, Path]) -> None:
    """The last one: nothing computes afterwards."""
    engine = make_engine(prepare(ranks, checkpoints["qwen3"], "qwen3"))
    engine.submit(make_job("a", prompt_of(20), 100))
    engine.step()
    os.kill(ranks.group.pids[-1], signal.SIGKILL)
    with pytest.raises(GroupLost, match="the ranks have lost each other"):
        drain(engine)
    assert ranks.is_lost.wait(10.0)
    last = ranks.group.size - 1
    assert ranks.lost == [f"rank {last} on cpu:{last} was ended by signal 9; a replica's ranks end together"]
