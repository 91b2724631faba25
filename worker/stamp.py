"""The step stamp: where a rank is, readable by its front at any moment without asking.

One page of shared memory (an inherited file descriptor), written by the rank at each change of phase. A front that is
pinged tells from it a long prefill from a hang, also while the rank's interpreter is inside a kernel.
"""

import mmap
import os
import struct
import tempfile
import time
from typing import Literal, NamedTuple, get_args

Phase = Literal["start", "load", "warm up", "idle", "prefill", "decode"]
_PHASES: tuple[Phase, ...] = get_args(Phase)
_LAYOUT = struct.Struct("<QQdd")  # step, phase, monotonic seconds, predicted seconds


class Reading(NamedTuple):
    """What a stamp says."""

    step: int
    phase: Phase
    age_s: float
    predicted_s: float


def create() -> int:
    """A file descriptor of a fresh stamp, to be inherited by a rank."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("plexus-stamp", 0)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, mmap.PAGESIZE)
    return fd


class Stamp:
    """One side's view of the stamp behind `fd`."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, mmap.PAGESIZE)

    def write(self, step: int, phase: Phase, predicted_s: float = 0.0) -> None:
        """Note the start of a phase. `predicted_s` is how long it should take; 0 when unknown."""
        _LAYOUT.pack_into(self._page, 0, step, _PHASES.index(phase), time.monotonic(), predicted_s)

    def read(self) -> Reading:
        """The latest note; age 0 before the first."""
        step, phase, at, predicted = _LAYOUT.unpack_from(self._page, 0)
        return Reading(step, _PHASES[phase], time.monotonic() - at if at else 0.0, predicted)

    def close(self) -> None:
        """Unmap; may be called twice."""
        self._page.close()
