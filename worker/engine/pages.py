"""Memory that is filled in small pages, which is quick, and joined into huge ones while there is nothing to do.

The system clears a huge page before it is first written to, and the host of a virtual machine often has to find memory
for it. Decode of one sequence reads weights a few percent faster from huge pages, so both are wanted, one after the
other. Joining moves what is there and never changes it, whoever it belongs to by then. Without effect off Linux; before
Linux 6.1 the system joins pages by itself, sometime.
"""

import ctypes
import mmap
import sys

PAGE_BYTES = 2 << 20
_COLLAPSE = 25  # MADV_COLLAPSE, which the mmap module does not name


class HugeLater:
    """Huge pages to be."""

    def __init__(self) -> None:
        self._addresses: dict[int, None] = {}  # in the order of their coming; neighbours may share one
        self._is_on = False
        self._libc = ctypes.CDLL(None)

    @property
    def has_more(self) -> bool:
        """Whether there is anything left to join."""
        return bool(self._addresses)

    def begin(self) -> None:
        """From now on `fill_small` has an effect; whoever calls this calls `join_one` later, until nothing is left."""
        self._is_on = sys.platform == "linux"

    def fill_small(self, address: int, num_bytes: int) -> None:
        """Memory at this address, which was not written to yet, is to come in small pages, if it is large."""
        if not self._is_on or num_bytes < PAGE_BYTES:
            return
        first, last = address // PAGE_BYTES, (address + num_bytes - 1) // PAGE_BYTES
        self._advise(first * PAGE_BYTES, (last - first + 1) * PAGE_BYTES, mmap.MADV_NOHUGEPAGE)
        self._addresses |= dict.fromkeys(number * PAGE_BYTES for number in range(first, last + 1))

    def join_one(self) -> None:
        """Join what is to be one huge page; where the system cannot, it may try again by itself."""
        address = next(iter(self._addresses))
        del self._addresses[address]
        self._advise(address, PAGE_BYTES, mmap.MADV_HUGEPAGE)
        self._advise(address, PAGE_BYTES, _COLLAPSE)

    def _advise(self, address: int, num_bytes: int, advice: int) -> None:
        self._libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), advice)


LATER = HugeLater()  # of this process
