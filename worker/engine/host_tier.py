"""The second tier of the cache: blocks evicted from the device, by name, in a bounded pool of host memory.

Book-keeping only; the bytes are moved by the runner (`plan.Transfer`).
"""

from collections import OrderedDict
from collections.abc import Iterable


class HostTier:
    """`num_slots` places in host memory, least recently used given up first. 0: there is no such tier."""

    def __init__(self, num_slots: int) -> None:
        self._slot: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_slots - 1, -1, -1))
        self._held: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._slot)

    def find(self, name: bytes) -> int | None:
        """Where the block of this name is."""
        return self._slot.get(name)

    def hold(self, names: Iterable[bytes]) -> None:
        """These are about to be read: keep them, in place of those held before."""
        self._held = set(names)
        for name in self._held:
            self._slot.move_to_end(name)

    def put(self, name: bytes) -> int | None:
        """Where to write a block that the device gives up; None if it is here already, or there is no room."""
        if name in self._slot:
            self._slot.move_to_end(name)
            return None
        if not self._free:
            oldest = next((other for other in self._slot if other not in self._held), None)
            if oldest is None:
                return None
            self._free.append(self._slot.pop(oldest))
        slot = self._slot[name] = self._free.pop()
        return slot
