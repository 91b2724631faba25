"""What replicas can run on here: CUDA devices through NVML, else the CPU with a share of the host's memory."""

import platform
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import psutil

from shared import host
from shared.host import ControlGroups
from shared.settings import WorkerSettings
from worker.agent.errors import NoSuchDevice
from worker.agent.numa import cpus_of

CUDA_FRACTION = 0.92  # of a CUDA device, unless the setting says otherwise: nobody else lives there


@dataclass(frozen=True)
class DeviceInfo:
    """One device; `total_bytes` is what replicas may use of it together."""

    id: str
    kind: Literal["cpu", "cuda"]
    name: str
    total_bytes: int


class Probe(Protocol):
    """A way to look at devices of one kind."""

    def devices(self) -> list[tuple[DeviceInfo, int]]:
        """Every device with its physical memory in bytes; none where there is no driver."""

    def free_bytes(self, device: str) -> int:
        """What the driver or the kernel reports as free now."""


class CudaProbe:
    """NVML, without a device context."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            for index in range(pynvml.nvmlDeviceGetCount()):
                self._handles[f"cuda:{index}"] = pynvml.nvmlDeviceGetHandleByIndex(index)
        except Exception:  # no package, no driver, a driver that does not answer: then there is no such device
            self._handles.clear()

    def devices(self) -> list[tuple[DeviceInfo, int]]:
        """Every CUDA device with its physical memory."""
        found = []
        for id, handle in self._handles.items():
            name = self._nvml.nvmlDeviceGetName(handle)
            total = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append((DeviceInfo(id, "cuda", name if isinstance(name, str) else name.decode(), total), total))
        return found

    def free_bytes(self, device: str) -> int:
        """Free memory as the driver reports it."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handles[device]).free)


class CpuProbe:
    """The host itself, or as much of it as a container or a service may use."""

    def __init__(self, groups: ControlGroups | None = None, parts: int = 1) -> None:
        """`parts`: devices that it is divided into, each with an even share of the memory."""
        self._groups = groups or ControlGroups()
        self._parts = parts

    def devices(self) -> list[tuple[DeviceInfo, int]]:
        """The CPU with the memory that may be used."""
        total = psutil.virtual_memory().total
        total = min(total, self._groups.memory_bytes() or total) // self._parts
        name = platform.processor() or platform.machine() or "cpu"
        ids = ["cpu"] if self._parts == 1 else [f"cpu:{number}" for number in range(self._parts)]
        return [(DeviceInfo(id, "cpu", name, total), total) for id in ids]

    def free_bytes(self, device: str) -> int:
        """Memory that can be had without swapping, and without being ended for it; of a part, an even share of it."""
        free, allowed = int(psutil.virtual_memory().available), self._groups.free_bytes()
        return (free if allowed is None else min(free, allowed)) // self._parts


class Devices:
    """The devices that the settings allow, and how much of them is free."""

    def __init__(self, settings: WorkerSettings, cuda: Probe | None = None, cpu: Probe | None = None) -> None:
        """Raises NoSuchDevice for a device in the settings that is not there."""
        probes: list[Probe] = [cuda or CudaProbe(), cpu or CpuProbe(parts=settings.cpu_devices)]
        everything = [(info, physical, probe) for probe in probes for info, physical in probe.devices()]
        wanted = settings.device
        if wanted == "auto":
            wanted = "cuda" if any(info.kind == "cuda" for info, _, _ in everything) else "cpu"
        self._probes: dict[str, Probe] = {}
        self.all: list[DeviceInfo] = []
        for info, physical, probe in everything:
            if wanted in (info.id, info.kind):
                self.all.append(DeviceInfo(info.id, info.kind, info.name, _share(info.kind, physical, settings)))
                self._probes[info.id] = probe
        if not self.all:
            raise NoSuchDevice(settings.device, [info.id for info, _, _ in everything])
        parts = [info.id for info, _, _ in everything if info.kind == "cpu"]
        self._cpus = dict(zip(parts, cpus_of(len(parts)), strict=True))

    def free_bytes(self, device: str) -> int:
        """What the driver or the kernel reports as free now."""
        return self._probes[device].free_bytes(device)

    def cpus(self, device: str) -> list[int]:
        """The processors that belong to a device; none named: any."""
        return self._cpus.get(device, [])

    def get(self, device: str) -> DeviceInfo:
        """The device of this id. Raises NoSuchDevice."""
        for info in self.all:
            if info.id == device:
                return info
        raise NoSuchDevice(device, [info.id for info in self.all])


def num_cores(settings: WorkerSettings) -> int:
    """Cores for replicas: as set, else all that this process may use."""
    return settings.cores or host.num_cores()


def _share(kind: str, physical: int, settings: WorkerSettings) -> int:
    if settings.memory_bytes:
        return min(settings.memory_bytes // (settings.cpu_devices if kind == "cpu" else 1), physical)
    fraction = settings.memory_fraction
    if kind == "cuda" and "memory_fraction" not in settings.model_fields_set:
        fraction = CUDA_FRACTION
    return int(physical * fraction)
