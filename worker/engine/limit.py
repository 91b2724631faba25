"""Holds a process to the memory that it was granted, by the system's own limit on a process's data."""

import errno
import os
import resource
import sys
from pathlib import Path

from worker.engine.errors import OutOfMemory

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


def hold_to(memory_bytes: int) -> None:
    """Let the process have so much memory of its own, what it has already included. Beyond it, allocations fail.

    The system counts what is mapped and not what is used, and libraries map more than they use; so what they mapped
    without using it comes on top. Without effect off Linux.
    """
    if sys.platform != "linux":
        return
    mapped, used = _data_bytes()
    limit = mapped + max(0, memory_bytes - min(mapped, used))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def is_want_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a refused allocation.

    torch has no type of its own for one on the CPU, so its allocator is known by its name in the text.
    """
    for one in (error, error.__cause__ if error is not None else None):
        if isinstance(one, MemoryError | OutOfMemory) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return True
        if isinstance(one, RuntimeError) and (type(one).__name__ == "OutOfMemoryError" or _CPU_ALLOCATOR in str(one)):
            return True
    return False


def _data_bytes() -> tuple[int, int]:
    """Data of this process: mapped, and in memory."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    page = os.sysconf("SC_PAGE_SIZE")
    return int(fields[5]) * page, (int(fields[1]) - int(fields[2])) * page
