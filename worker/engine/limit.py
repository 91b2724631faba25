"""Holds a process to the memory that it was granted, by the system's own limit on a process's data."""

import os
import resource
import sys
from pathlib import Path


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


def _data_bytes() -> tuple[int, int]:
    """Data of this process: mapped, and in memory."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    page = os.sysconf("SC_PAGE_SIZE")
    return int(fields[5]) * page, (int(fields[1]) - int(fields[2])) * page
