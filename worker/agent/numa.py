"""The processors of each NUMA node, so that the ranks of a divided model each stay beside their memory."""

import os
from pathlib import Path

_NODES = Path("/sys/devices/system/node")


def cpus_of(num_devices: int, nodes: Path = _NODES, usable: set[int] | None = None) -> list[list[int]]:
    """The processors of each of so many devices that a host was divided into: a node's where there are as many nodes.

    Empty lists (any processor will do) where there is another number of nodes, or nobody tells.
    """
    if usable is None:
        usable = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()
    found: list[list[int]] = []
    for node in sorted(nodes.glob("node[0-9]*"), key=lambda one: int(one.name[4:])):
        try:
            cpus = sorted(_numbers((node / "cpulist").read_text(encoding="ascii")) & usable)
        except (OSError, ValueError):
            continue
        if cpus:  # a node may be memory alone, or not ours
            found.append(cpus)
    return found if len(found) == num_devices > 1 else [[] for _ in range(num_devices)]


def _numbers(text: str) -> set[int]:
    """Of a list like ``0-3,8,10-11``."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else []:
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
