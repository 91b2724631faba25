"""Who was promised what of this host: memory by device, and cores. Pure; the agent asks before it starts anything."""

from dataclasses import dataclass

from worker.agent.errors import NoSuchDevice, NotEnoughMemory


@dataclass
class Grant:
    """What a replica may use."""

    device: str
    memory_bytes: int
    cores: int
    is_measured: bool = False  # it has taken what it takes; before, its memory still looks free to the driver


class Ledger:
    """Grants by holder. Memory is never promised twice; of cores everybody gets at least one."""

    def __init__(self, devices: dict[str, int], cores: int) -> None:
        self._capacity = dict(devices)  # bytes
        self._cores = cores
        self._grants: dict[str, Grant] = {}

    @property
    def reserved_cores(self) -> int:
        """Cores granted."""
        return sum(grant.cores for grant in self._grants.values())

    def reserved_bytes(self, device: str) -> int:
        """Memory granted on a device."""
        return sum(grant.memory_bytes for grant in self._grants.values() if grant.device == device)

    def available_bytes(self, device: str, free_bytes: int) -> int:
        """What may still be granted on a device whose driver reports `free_bytes`. Raises NoSuchDevice.

        Somebody outside of this ledger may use the device too, so the driver's word counts, less what was granted but
        not taken yet.
        """
        if device not in self._capacity:
            raise NoSuchDevice(device, sorted(self._capacity))
        grants = [grant for grant in self._grants.values() if grant.device == device]
        pending = sum(grant.memory_bytes for grant in grants if not grant.is_measured)
        return max(0, min(self._capacity[device] - self.reserved_bytes(device), free_bytes - pending))

    def reserve(self, holder: str, device: str, memory_bytes: int, *, cores: int, free_bytes: int) -> Grant:
        """Promise memory, and up to `cores` cores. Raises NotEnoughMemory, NoSuchDevice."""
        assert holder not in self._grants, f"{holder} holds a grant already"
        available = self.available_bytes(device, free_bytes)
        if memory_bytes > available:
            raise NotEnoughMemory(device, memory_bytes, available, self.reserved_bytes(device))
        granted = max(1, min(cores, self._cores - self.reserved_cores))
        grant = self._grants[holder] = Grant(device, memory_bytes, granted)
        return grant

    def measured(self, holder: str, memory_bytes: int) -> None:
        """What a replica really took. The larger of both numbers stands."""
        grant = self._grants[holder]
        grant.memory_bytes = max(grant.memory_bytes, memory_bytes)
        grant.is_measured = True

    def release(self, holder: str) -> None:
        """Take back a promise; exactly once."""
        del self._grants[holder]

    def __contains__(self, holder: str) -> bool:
        return holder in self._grants
