"""As many threads as leave a busy neighbour room, and none that spins while it waits."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.engine import process
from worker.engine.threads import choose, num_threads, quota


@pytest.mark.parametrize(
    ("granted", "usable", "physical", "share", "threads"),
    [
        (1, 1, 1, math.inf, 1),
        (2, 2, 2, math.inf, 2),  # few cores: all of them
        (8, 8, 8, math.inf, 7),  # one is left to the front and the host
        (3, 8, 8, math.inf, 3),  # a grant that leaves some anyway is used whole
        (16, 16, 8, math.inf, 7),  # two threads of one core share what computes
        (64, 64, 32, 4.0, 3),  # a container's share
        (64, 64, 32, 1.5, 1),
        (64, 64, 32, 0.2, 1),
        (8, 8, 0, math.inf, 7),  # nobody knows which cores are real
        (4, 2, 8, math.inf, 2),
        (0, 8, 8, math.inf, 1),
    ],
)
def test_choice(granted: int, usable: int, physical: int, share: float, threads: int) -> None:
    assert choose(granted, usable=usable, physical=physical, quota=share) == threads


def test_here_there_is_at_least_one_and_never_more_than_granted() -> None:
    assert [num_threads(granted) for granted in (0, 1)] == [1, 1]
    assert 1 <= num_threads(1000) <= (os.cpu_count() or 1)


def test_a_containers_share(tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    assert quota(file) == math.inf
    file.write_text("max 100000\n")
    assert quota(file) == math.inf
    file.write_text("250000 100000\n")
    assert quota(file) == 2.5


@pytest.mark.slow
def test_waiting_threads_of_a_rank_do_not_spin() -> None:
    """What the library of threads itself says it goes by, in a process that begins as a rank does."""
    begin = f"from worker.engine import process; process.{process.prepare_libraries.__name__}()"
    code = f"{begin}; import torch; torch.ones(9)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_DISPLAY_ENV": "verbose", "OMP_WAIT_POLICY": "ACTIVE"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this torch has another library of threads")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr or "GOMP" not in done.stderr
