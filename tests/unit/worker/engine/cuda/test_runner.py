"""Bookkeeping of decode graphs: buckets, fillers, tokens carried over, what falls out and what is forgotten."""

import numpy as np
import pytest
import torch

from tests.support.models import make_model
from tests.support.recorder import FakeRecorder
from tests.support.stepping import Collected, drain, make_job
from worker.engine.block_table import BlockTable
from worker.engine.cuda.graph_runner import buckets
from worker.engine.cuda.options import CudaChoice
from worker.engine.cuda.prepare import prepare
from worker.engine.cuda.runner import CudaRunner
from worker.engine.cuda.static import _Places
from worker.engine.engine import Engine
from worker.engine.prepared import AS_IS
from worker.engine.runner import TorchRunner

PLAIN = CudaChoice(attention=("gather",), has_triton=False)
PROMPT = list(range(2, 25))


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_model("qwen3"), torch.float32, PLAIN, consume=False)


def make_engine(runner, num_blocks=64, block_tokens=16, **options) -> Engine:
    return Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        slots=6,
        prefill_tokens=64,
        context_limit=200,
        speculate=False,
        **options,
    )


def make_runner(prepared, recorder, choice=PLAIN, block_tokens=16) -> CudaRunner:
    return CudaRunner(
        prepared,
        "cpu",
        torch.float32,
        64,
        block_tokens,
        max_rows=6,
        context_limit=200,
        choice=choice,
        recorder=recorder,
    )


def run(runner, jobs) -> Collected:
    engine = make_engine(runner)
    for job in jobs:
        engine.submit(job)
    return drain(engine)


def expect(jobs) -> Collected:
    """The same by the ordinary runner."""
    return run(TorchRunner(make_model("qwen3"), "cpu", torch.float32, 64, 16, verify=False, choice=AS_IS), jobs)


def test_buckets():
    assert buckets(1) == [1]
    assert buckets(6) == [1, 2, 4, 6]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert buckets(1000)[-2:] == [248, 256]


def test_each_bucket_is_recorded_twice_the_largest_first(prepared):
    recorder = FakeRecorder()
    assert make_runner(prepared, recorder).has_graphs
    assert recorder.num_recorded == 2 * len(buckets(6))


def test_what_cannot_be_recorded_runs_without(prepared):
    class Refusing(FakeRecorder):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    runner = make_runner(prepared, Refusing())
    assert not runner.has_graphs
    assert run(runner, [make_job("a", PROMPT)]).ids == expect([make_job("a", PROMPT)]).ids


@pytest.mark.parametrize("ahead", [True, False])
def test_random_tokens_are_those_of_the_ordinary_runner(prepared, ahead):
    jobs = [
        make_job("greedy", PROMPT, 9),
        make_job("hot", PROMPT[:5], 12, temperature=1.3, seed=7),
        make_job("limited", PROMPT[3:9], 10, temperature=0.8, top_k=20, top_p=0.9, seed=8, n=2),
    ]
    recorder = FakeRecorder()
    choice = CudaChoice(attention=("gather",), has_triton=False, runs_ahead=ahead)
    assert run(make_runner(prepared, recorder, choice), jobs).ids == expect(jobs).ids
    assert recorder.num_replayed > 8


def test_penalties_and_log_probabilities_are_the_hosts(prepared):
    jobs = [
        make_job("plain", PROMPT, 9, temperature=1.0, seed=3),
        make_job("penalised", PROMPT, 9, repetition_penalty=1.3, presence_penalty=0.5),
        make_job("told", PROMPT[:7], 9, logprobs=2),
    ]
    recorder = FakeRecorder()
    found, expected = run(make_runner(prepared, recorder), jobs), expect(jobs)
    assert found.ids == expected.ids
    for ours, theirs in zip(found.logprobs["told", 0], expected.logprobs["told", 0], strict=True):
        assert ours.id == theirs.id
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert recorder.num_replayed >= 8  # the forward passes are replayed all the same
    assert recorder.num_unread == 0  # and nothing is started ahead of the host


def test_a_stopped_row_costs_the_others_nothing(prepared):
    """It stops at a token that nobody could foresee: its part of the step that was started ahead is forgotten."""
    whole = expect([make_job("a", PROMPT, 12)]).ids["a", 0]
    stop = whole[4]
    jobs = [make_job("a", PROMPT, 12, stop_ids=[stop]), make_job("b", PROMPT[:9], 12)]
    recorder = FakeRecorder()
    found = run(make_runner(prepared, recorder), jobs)
    assert found.ids["a", 0] == whole[: whole.index(stop) + 1]
    assert found.ids["b", 0] == expect(jobs).ids["b", 0]
    assert recorder.num_unread == 0


def test_more_rows_than_the_largest_bucket_run_without(prepared):
    jobs = [make_job(str(number), PROMPT[number : number + 8], 6) for number in range(6)]
    recorder = FakeRecorder()
    runner = CudaRunner(prepared, "cpu", torch.float32, 64, 16, max_rows=4, choice=PLAIN, recorder=recorder)
    assert run(runner, jobs).ids == expect(jobs).ids
    assert recorder.num_replayed == 0


def test_a_row_that_is_not_finite_fails_alone(prepared, monkeypatch):
    recorder = FakeRecorder()
    runner = make_runner(prepared, recorder)
    graphs = runner._graphs
    engine = make_engine(runner)
    for key in ("good", "bad"):
        engine.submit(make_job(key, PROMPT[: 5 if key == "bad" else 20], 12))
    collected = Collected()
    for _ in range(3):
        collected.take(engine.step())
    compute = graphs._compute

    def spoil(inputs):
        logits = compute(inputs)
        return torch.where((inputs.positions < 15)[:, None], torch.nan, logits)

    monkeypatch.setattr(graphs, "_compute", spoil)
    drain(engine, collected)
    assert collected.refused["bad"].kind == "engine_error"
    assert collected.ids["good", 0] == expect([make_job("good", PROMPT[:20], 12)]).ids["good", 0]


def test_fillers_write_where_nobody_reads(prepared):
    runner = make_runner(prepared, FakeRecorder())
    jobs = [make_job(str(number), PROMPT[number:], 6) for number in range(3)]  # a bucket of four
    assert run(runner, jobs).ids == expect(jobs).ids
    caches = runner._model._caches
    assert all(bool(cache.keys[-1].any()) for cache in caches)
    assert all(cache.trash_page == 64 for cache in caches)


def test_a_sequence_that_comes_back_with_other_blocks_has_all_of_them_written():
    """Preempted and admitted again it has the same table, and the last block that was written may be where it was."""
    places = _Places(np.zeros(3 + 1 + 8, dtype=np.int32), 1, trash_page=9, page_tokens=4)
    table = BlockTable(4)
    table.extend([0, 1, 2])
    places.put(0, table, 9)
    table.extend([5])
    places.put(0, table, 13)
    assert places.tables[0, :4].tolist() == [0, 1, 2, 5]
    table.clear()
    table.extend([3, 4, 6, 5])
    places.put(0, table, 13)
    assert places.tables[0, :4].tolist() == [3, 4, 6, 5]
