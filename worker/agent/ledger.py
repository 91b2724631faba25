"""Who was promised what of this host: memory by device, and cores. Pure; the agent asks before it starts anything."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.agent.errors import NoSuchDevice, NotEnoughMemory


@dataclass
class Grant:
    """What a replica may use."""

    device: str  # of several, the first
    memory_bytes: int  # on each device
    cores: int
    others: tuple[str, ...] = ()  # further devices, with as much memory
    is_measured: bool = False  # it has taken what it takes; before, its memory still looks free to the driver

    @property
    def devices(self) -> tuple[str, ...]:
        """All of them."""
        return (self.device, *self.others)


class Ledger:
    """Grants by holder. Memory is never promised twice.

    Cores are lent, not given: an idle replica needs none, so one that comes later gets its even share of the host
    although those that came before were granted all of it.
    """

    def __init__(self, devices: dict[str, int], cores: int) -> None:
        self._capacity = dict(devices)  # bytes
        self._cores = cores
        self._grants: dict[str, Grant] = {}

    @property
    def reserved_cores(self) -> int:
        """Cores lent, all grants together; of several replicas it may be more than there are."""
        return sum(grant.cores for grant in self._grants.values())

    def reserved_bytes(self, device: str) -> int:
        """Memory granted on a device."""
        return sum(grant.memory_bytes for grant in self._grants.values() if device in grant.devices)

    def available_bytes(self, device: str, free_bytes: int) -> int:
        """What may still be granted on a device whose driver reports `free_bytes`. Raises NoSuchDevice.

        Somebody outside of this ledger may use the device too, so the driver's word counts, less what was granted but
        not taken yet.
        """
        if device not in self._capacity:
            raise NoSuchDevice(device, sorted(self._capacity))
        grants = [grant for grant in self._grants.values() if device in grant.devices]
        pending = sum(grant.memory_bytes for grant in grants if not grant.is_measured)
        return max(0, min(self._capacity[device] - self.reserved_bytes(device), free_bytes - pending))

    def reserve(
        self,
        holder: str,
        device: str,
        memory_bytes: int,
        *,
        cores: int,
        free_bytes: int,
        others: Mapping[str, int] | None = None,
    ) -> Grant:
        """Promise memory, and lend up to `cores` cores. Raises NotEnoughMemory, NoSuchDevice.

        `others` are further devices, with what is free on each: all of them are promised as much, or none is.
        """
        assert holder not in self._grants, f"{holder} holds a grant already"
        for one, free in {device: free_bytes, **(others or {})}.items():
            available = self.available_bytes(one, free)
            if memory_bytes > available:
                raise NotEnoughMemory(one, memory_bytes, available, self.reserved_bytes(one))
        granted = max(1, min(cores, self._cores))
        grant = self._grants[holder] = Grant(device, memory_bytes, granted, tuple(others or ()))
        return grant

    def measured(self, holder: str, memory_bytes: int) -> None:
        """What a replica really took, on the device where it took most. The larger of both numbers stands."""
        grant = self._grants[holder]
        grant.memory_bytes = max(grant.memory_bytes, memory_bytes)
        grant.is_measured = True

    def release(self, holder: str) -> None:
        """Take back a promise; exactly once."""
        del self._grants[holder]

    def __contains__(self, holder: str) -> bool:
        return holder in self._grants
