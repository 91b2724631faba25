"""How many threads compute: as many as granted, but no more than leave room for whoever else needs a core.

Two threads on two cores beside a busy neighbour are slower than one: each step waits for the thread that was put off.
So where there are more than two cores one is left to the front and to the host, threads are not more than cores that
are real, and a container's share of the processors counts. On one or two cores all are used, and threads that wait do
so without spinning (the environment that `worker.engine.rank` sets).
"""

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FEW = 2


def num_threads(granted: int) -> int:
    """Threads for a rank that was granted so many cores of this host."""
    return choose(granted, usable=_num_usable(), physical=_num_physical(), quota=quota(_QUOTA))


def choose(granted: int, *, usable: int, physical: int, quota: float) -> int:
    """The same, by what there is: processors that may be used, cores that are real (0: unknown), and the share."""
    most = min(usable, physical or usable, max(1, int(min(quota, usable))))
    if most > _FEW:
        most -= 1
    return max(1, min(granted, most))


def quota(file: Path) -> float:
    """Processors' worth of time that this control group may have; infinite where nobody says."""
    try:
        share, period = file.read_text(encoding="ascii").split()
        return int(share) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


def _num_usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_physical() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or 0
