"""Small pages while memory is filled, huge ones afterwards."""

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worker import channel
from worker.engine import rank
from worker.engine.pages import PAGE_BYTES, HugeLater
from worker.protocol import Stop, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
SIZE = 8 * PAGE_BYTES


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """New memory that asks for huge pages, as torch does."""
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        yield memory


def fill(memory: mmap.mmap, later: HugeLater) -> np.ndarray:
    """Its bytes, all written, those in the middle in small pages."""
    view = np.frombuffer(memory, np.uint8)
    later.fill_small(view.ctypes.data + PAGE_BYTES, SIZE - 3 * PAGE_BYTES)
    view[:] = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    return view


def huge_bytes(view: np.ndarray) -> int:
    """Of these bytes, those in huge pages."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(" ")
        if not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            inside = first < view.ctypes.data + SIZE and last > view.ctypes.data
        elif name == "AnonHugePages:" and inside:
            found += int(value.split()[0]) << 10
    return found


def test_joined_memory_holds_what_it_held(memory: mmap.mmap) -> None:
    later = HugeLater()
    later.begin()
    view = fill(memory, later)
    before, copy = huge_bytes(view), view.copy()
    assert before <= 4 * PAGE_BYTES  # a larger mapping around this one may count its own
    assert later.has_more
    while later.has_more:
        later.join_one()
    assert np.array_equal(view, copy)
    release = tuple(int(part) for part in Path("/proc/sys/kernel/osrelease").read_text().split(".")[:2])
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if release >= (6, 1) and setting.exists() and "[never]" not in setting.read_text():
        assert huge_bytes(view) > before
    del view


def test_nothing_is_kept_small_where_nobody_joins_it(memory: mmap.mmap) -> None:
    later = HugeLater()
    view = fill(memory, later)
    assert not later.has_more
    del view


def test_small_allocations_are_left_alone(memory: mmap.mmap) -> None:
    later = HugeLater()
    later.begin()
    view = np.frombuffer(memory, np.uint8)
    later.fill_small(view.ctypes.data, PAGE_BYTES - 1)
    assert not later.has_more
    del view


def test_memory_that_is_gone_by_then_does_not_matter() -> None:
    later = HugeLater()
    later.begin()
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        view = fill(memory, later)
        del view
    while later.has_more:
        later.join_one()


def test_a_frame_comes_before_any_joining(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    later = HugeLater()
    later.begin()
    view = fill(memory, later)
    monkeypatch.setattr(rank, "LATER", later)
    ours, theirs = channel.pair()
    front, back = channel.Channel(ours), channel.Channel(theirs)
    left = len(later._addresses)
    front.send(encode(Stop()))
    assert rank._idle(back) == [Stop()]
    assert len(later._addresses) == left
    monkeypatch.setattr(rank, "_IDLE_S", 0.0)
    join_one = later.join_one

    def join_and_speak() -> None:
        join_one()
        if len(later._addresses) == left - 2:
            front.send(encode(Stop()))

    monkeypatch.setattr(later, "join_one", join_and_speak)
    assert rank._idle(back) == [Stop()]
    assert len(later._addresses) == left - 2
    front.close()
    back.close()
    del view
