"""The limit on a process's memory, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ranks import ids, job, rank_config, running_rank
from tests.support.tiny import make_checkpoint
from worker.protocol import Ready

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")

PROGRAM = """
from worker.engine.limit import hold_to
hold_to({granted} << 20)
try:
    taken = bytes({taken} << 20)
except MemoryError:
    print("refused")
else:
    print("taken")
"""


@pytest.mark.parametrize(("granted", "taken", "answer"), [(200, 150, "taken"), (200, 250, "refused")])
def test_what_goes_beyond_the_grant_is_refused(granted: int, taken: int, answer: str) -> None:
    program = PROGRAM.format(granted=granted, taken=taken)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == answer


def test_a_rank_works_within_its_grant(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path)
    with running_rank() as rank:
        rank.send(rank_config(path, enforce_memory=True, memory_bytes=700 << 20))
        ready = rank.wait_for(Ready)
        assert 0 < ready.measured_bytes <= 700 << 20
        assert list(ready.stages_s) == ["import", "read", "pack", "warm up"]
        rank.send(job("a", [5, 300, 17]))
        assert len(ids(rank.collect(("a", 0))["a", 0])) == 8
