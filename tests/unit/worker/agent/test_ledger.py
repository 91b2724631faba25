"""The ledger never promises twice and gives back once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.agent.errors import NoSuchDevice, NotEnoughMemory
from worker.agent.ledger import Ledger

FREE = 1 << 60


def test_memory_is_promised_once() -> None:
    ledger = Ledger({"cuda:0": 100, "cuda:1": 50}, 8)
    ledger.reserve("a", "cuda:0", 60, cores=2, free_bytes=FREE)
    with pytest.raises(NotEnoughMemory) as caught:
        ledger.reserve("b", "cuda:0", 41, cores=2, free_bytes=FREE)
    assert (caught.value.needed_bytes, caught.value.free_bytes, caught.value.reserved_bytes) == (41, 40, 60)
    ledger.reserve("b", "cuda:0", 40, cores=2, free_bytes=FREE)
    ledger.reserve("c", "cuda:1", 50, cores=2, free_bytes=FREE)
    assert (ledger.reserved_bytes("cuda:0"), ledger.reserved_bytes("cuda:1"), ledger.reserved_cores) == (100, 50, 6)
    ledger.release("a")
    assert ledger.available_bytes("cuda:0", FREE) == 60 and "a" not in ledger
    with pytest.raises(KeyError):
        ledger.release("a")


def test_what_the_driver_says_counts_too() -> None:
    ledger = Ledger({"cuda:0": 100}, 8)
    assert ledger.available_bytes("cuda:0", 30) == 30
    ledger.reserve("a", "cuda:0", 20, cores=1, free_bytes=30)
    assert ledger.available_bytes("cuda:0", 30) == 10  # not taken yet, so it still looks free
    ledger.measured("a", 15)
    assert ledger.available_bytes("cuda:0", 15) == 15
    assert ledger.reserved_bytes("cuda:0") == 20
    ledger.measured("a", 95)
    assert ledger.available_bytes("cuda:0", FREE) == 5


def test_whoever_comes_later_gets_the_cores_it_asks_for() -> None:
    """On sixteen cores the first replica got all, and the second one."""
    ledger = Ledger({"cpu": 100}, 16)
    asked = (16, 8, 6, 0, 99)  # even shares, each of as many as there are by then
    grants = [ledger.reserve(str(n), "cpu", 1, cores=cores, free_bytes=FREE).cores for n, cores in enumerate(asked)]
    assert grants == [16, 8, 6, 1, 16]


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(NoSuchDevice, match=r"cuda:7.*cpu"):
        Ledger({"cpu": 100}, 1).reserve("a", "cuda:7", 1, cores=1, free_bytes=FREE)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 80), st.integers(0, 120), st.integers(0, 80))))
def test_promises_never_exceed_the_device(events: list[tuple[str, int, int, int]]) -> None:
    ledger = Ledger({"cpu": 100}, 4)
    promised: dict[str, int] = {}
    for holder, size, free, taken in events:
        if holder in ledger:
            if taken % 2:
                ledger.measured(holder, min(taken, promised[holder]))
            else:
                ledger.release(holder)
                del promised[holder]
            continue
        try:
            ledger.reserve(holder, "cpu", size, cores=2, free_bytes=free)
            promised[holder] = size
        except NotEnoughMemory as error:
            assert error.free_bytes < size
    assert ledger.reserved_bytes("cpu") == sum(promised.values()) <= 100


def test_several_devices_are_promised_together_or_not_at_all() -> None:
    ledger = Ledger({"cuda:0": 100, "cuda:1": 100, "cuda:2": 100}, 8)
    ledger.reserve("a", "cuda:1", 50, cores=1, free_bytes=FREE)
    with pytest.raises(NotEnoughMemory, match=r"needs .* on cuda:1"):
        ledger.reserve("b", "cuda:0", 60, cores=2, free_bytes=FREE, others={"cuda:1": FREE})
    assert ledger.reserved_bytes("cuda:0") == 0
    grant = ledger.reserve("b", "cuda:0", 60, cores=2, free_bytes=FREE, others={"cuda:2": FREE})
    assert grant.devices == ("cuda:0", "cuda:2")
    ledger.measured("b", 70)  # where it took most
    assert [ledger.reserved_bytes(device) for device in ("cuda:0", "cuda:1", "cuda:2")] == [70, 50, 70]
    assert ledger.available_bytes("cuda:2", FREE) == 30
    ledger.release("b")
    assert ledger.reserved_bytes("cuda:2") == 0
