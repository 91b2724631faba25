"""Limits of containers and services, as their files say them."""

import math
import os
from pathlib import Path

import pytest

from shared.host import ControlGroups, num_cores

GB = 1 << 30


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> ControlGroups:
    """A process whose /proc/self/cgroup says `own`, and the files below the mount."""
    mount = tmp_path / "cgroup"
    mount.mkdir()
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    return ControlGroups(mount, tmp_path / "own")


def test_a_container_shows_its_own_group_as_the_root(tmp_path: Path) -> None:
    stat = "anon 1\ninactive_file 300\nactive_file 50\n"
    files = {"cpu.max": "250000 100000\n", "memory.max": f"{GB}\n", "memory.current": "1000\n", "memory.stat": stat}
    found = groups(tmp_path, "0::/../../not/here\n", files)
    assert found.num_processors() == 2.5
    assert (found.memory_bytes(), found.free_bytes()) == (GB, GB - 1000 + 350)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    """A service in a slice: the slice may have less than the service, or be fuller."""
    files = {
        "a.slice/cpu.max": "100000 100000",
        "a.slice/b.service/cpu.max": "max 100000",
        "a.slice/memory.max": str(8 * GB),
        "a.slice/memory.current": str(7 * GB),
        "a.slice/b.service/memory.max": str(4 * GB),
        "a.slice/b.service/memory.current": str(GB),
    }
    found = groups(tmp_path, "0::/a.slice/b.service\n", files)
    assert found.num_processors() == 1.0
    assert (found.memory_bytes(), found.free_bytes()) == (4 * GB, GB)


def test_the_older_hierarchies(tmp_path: Path) -> None:
    files = {
        "cpu/x/cpu.cfs_quota_us": "300000",
        "cpu/x/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/y/memory.limit_in_bytes": str(2 * GB),
        "memory/y/memory.usage_in_bytes": str(GB),
        "memory/y/memory.stat": "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 10",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": str(50 * GB),
        "unified/cpu.max": "max 100000",
    }
    found = groups(tmp_path, "5:memory:/y\n1:cpu,cpuacct:/x\n0::/\n", files)
    assert found.num_processors() == 3.0
    assert (found.memory_bytes(), found.free_bytes()) == (2 * GB, GB + 110)


@pytest.mark.parametrize("own", ["", "nonsense", "0::/\n", "::\n7:cpu:\n"])
def test_where_nothing_is_said_there_is_no_limit(tmp_path: Path, own: str) -> None:
    found = groups(tmp_path, own, {"memory.max": "max\n", "cpu.max": ""})
    assert (found.num_processors(), found.memory_bytes(), found.free_bytes()) == (math.inf, 0, None)


def test_cores_are_those_that_may_be_used(tmp_path: Path) -> None:
    usable = len(os.sched_getaffinity(0))
    files = {"cpu.max": "50000 100000"}
    assert num_cores(groups(tmp_path, "0::/\n", files)) == 1  # half a processor still computes
    (tmp_path / "cgroup" / "cpu.max").write_text(f"{(usable + 5) * 1000} 1000")
    assert num_cores(ControlGroups(tmp_path / "cgroup", tmp_path / "own")) == usable
    assert 1 <= num_cores() <= usable


def test_of_one_core_that_it_may_run_on_it_uses_one() -> None:
    """A cpuset, or taskset: the kernel shows both as the processors that a process may run on."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
