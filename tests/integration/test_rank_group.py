"""A replica over several devices: real processes, driven from the front's side of the first one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.process import is_running
from tests.support.ranks import RankProcess, ids, job, rank_config, running_rank, soon
from tests.support.tiny import make_checkpoint
from worker.protocol import Fatal, Ranks, Ready, Step

PROMPT = [5, 9, 33, 71, 5, 9, 33, 71, 12, 60, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("qwen3"), eos_token_id=None)


@pytest.fixture
def rank() -> Iterator[RankProcess]:
    with running_rank() as rank:
        yield rank


def start(rank: RankProcess, model: Path, **changes: object) -> tuple[list[int], Ready]:
    """Over two devices; the process ids of the other ranks, and what it says when it is ready."""
    rank.send(rank_config(model, device="cpu:0", followers=["cpu:1"], dtype="float32", **changes))
    return rank.wait_for(Ranks).pids, rank.wait_for(Ready)


@pytest.mark.slow
def test_a_group_says_what_one_rank_says_and_ends_with_its_follower(rank: RankProcess, model: Path) -> None:
    with running_rank() as alone:
        alone.send(rank_config(model, device="cpu", dtype="float32"))
        ready = alone.wait_for(Ready)
        alone.send(job("a", PROMPT, max_tokens=40))
        expected = ids(alone.collect(("a", 0))["a", 0])
    (follower,), shared = start(rank, model)
    assert (shared.vocab_size, shared.context_limit) == (ready.vocab_size, ready.context_limit)
    assert shared.fingerprint != ready.fingerprint  # sums in another order: resumed elsewhere only if need be
    rank.send(job("a", PROMPT, max_tokens=40), job("b", PROMPT[2:], max_tokens=40))
    assert ids(rank.collect(("a", 0), ("b", 0))["a", 0]) == expected

    rank.send(job("c", PROMPT, max_tokens=400))
    rank.wait_for(Step)
    os.kill(follower, signal.SIGKILL)
    fatal = rank.wait_for(Fatal)
    assert fatal.message == "rank 1 on cpu:1 was ended by signal 9; a replica's ranks end together"
    assert rank.process.wait(10.0) == 1


def test_followers_end_with_the_first_rank(rank: RankProcess, model: Path) -> None:
    rank.send(rank_config(model, device="cpu:0", followers=["cpu:1", "cpu:2", "cpu:3"], dtype="float32"))
    followers = rank.wait_for(Ranks).pids
    assert len(followers) == 3 and all(map(is_running, followers))
    os.kill(rank.process.pid, signal.SIGKILL)
    assert soon(lambda: not any(map(is_running, followers)))
