"""What counts as a refused allocation."""

import errno

import pytest
import torch

from worker.engine.errors import NotFinite, OutOfMemory
from worker.engine.limit import is_want_of_memory


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemory("a step"),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …"),
        caused(ValueError("the weights cannot be read"), MemoryError()),
    ],
)
def test_all_the_ways_to_say_it(error: Exception) -> None:
    assert is_want_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("memory"), RuntimeError("shape"), OSError(errno.ENOENT, ""), NotFinite()])
def test_nothing_else_counts(error: Exception) -> None:
    assert not is_want_of_memory(error)


def test_the_cpus_allocator_says_it_as_expected() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_want_of_memory(refused.value)
