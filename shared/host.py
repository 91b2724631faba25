"""What this process may use of its host: less than there is, in a container, or in a service that has limits.

A process is in one control group of the unified hierarchy (v2), or in one for each controller (v1). A group's limit
holds for all groups below it, so the tightest on the way up counts. In a container the path of the group often names
a place that only the host can see; what is mounted there is then the container's own group, as the root.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60  # v1 writes a number near 2**63 for none


class ControlGroups:
    """The groups of a process, as the kernel shows them in files. Whatever cannot be read is no limit."""

    def __init__(self, mount: Path = _MOUNT, own: Path = _OWN) -> None:
        self._mount = mount
        self._paths: dict[str, str] = {}  # by controller; v2 has one group for all, under ""
        for line in _read(own).splitlines():
            _, controllers, path = (*line.split(":", 2), "", "")[:3]
            for controller in controllers.split(","):
                self._paths[controller] = path.strip()

    def num_processors(self) -> float:
        """Processors' worth of time, a fraction maybe; infinite where there is no limit."""
        pairs = [_read(group / "cpu.max").split()[:2] for group in self._groups("")]
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        pairs += [[_read(group / name) for name in names] for group in self._groups("cpu")]
        return min((_share(*pair) for pair in pairs), default=math.inf)

    def memory_bytes(self) -> int:
        """The memory that may be used in all; 0 where there is no limit."""
        return min((limit for _, limit, _ in self._memory()), default=0)

    def free_bytes(self) -> int | None:
        """What may still be used of it, file pages that the kernel can drop included; None where there is no limit."""
        frees = []
        for group, limit, usage in self._memory():
            figures = dict(line.split(maxsplit=1) for line in _read(group / "memory.stat").splitlines() if " " in line)
            prefix = "total_" if "total_inactive_file" in figures else ""  # v1: with the groups below
            droppable = sum(_number(figures.get(f"{prefix}{kind}_file", "")) or 0 for kind in ("inactive", "active"))
            frees.append(max(0, limit - usage + droppable))
        return min(frees, default=None)

    def _memory(self) -> Iterator[tuple[Path, int, int]]:
        """Every group with a limit, that limit, and what is used of it."""
        for controller, name, used in (
            ("", "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            for group in self._groups(controller):
                limit = _number(_read(group / name))
                if limit is not None and 0 < limit < _NO_LIMIT:
                    yield group, limit, _number(_read(group / used)) or 0

    def _groups(self, controller: str) -> Iterator[Path]:
        """The process's group of a controller and those above it, as far as they can be seen."""
        if controller not in self._paths:
            return
        root = self._mount / controller
        if not controller and (root / "unified").is_dir():
            root = root / "unified"
        path = self._paths[controller].lstrip("/")
        group = root if ".." in path.split("/") else root / path  # above what is mounted: nothing that we could read
        while group != root and root in group.parents:
            if group.is_dir():
                yield group
            group = group.parent
        yield root


def num_cores(groups: ControlGroups | None = None) -> int:
    """Cores that this process may use: those it may run on, and no more than its share of processor time is worth."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(usable, (groups or ControlGroups()).num_processors())))


def _share(quota: str = "", period: str = "") -> float:
    allowed, each = _number(quota), _number(period)
    return allowed / each if allowed and each and allowed > 0 else math.inf


def _number(text: str) -> int | None:
    """None for "max", and for what is no number."""
    try:
        return int(text)
    except ValueError:
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
