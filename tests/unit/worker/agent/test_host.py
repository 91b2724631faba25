"""Devices, the name, and the sizes of replicas."""

import json
from pathlib import Path

import psutil
import pytest

from shared.records import ModelRecord
from shared.settings import WorkerSettings
from worker.agent import sizing
from worker.agent.devices import CUDA_FRACTION, CpuProbe, DeviceInfo, Devices, num_cores
from worker.agent.errors import NoSuchDevice
from worker.agent.identity import worker_name
from worker.agent.sizing import size
from worker.models.plan import MemoryPlan


class FixedProbe:
    """Devices of a test's choosing."""

    def __init__(self, *ids: str, total: int = 1000) -> None:
        self._ids, self._total = ids, total

    def devices(self) -> list[tuple[DeviceInfo, int]]:
        return [(DeviceInfo(id, "cuda" if "cuda" in id else "cpu", "X", self._total), self._total) for id in self._ids]

    def free_bytes(self, device: str) -> int:
        return 7


def devices(setting: str = "auto", *cuda: str, **settings: object) -> Devices:
    given = WorkerSettings(device=setting, **settings)  # type: ignore[arg-type]
    return Devices(given, FixedProbe(*cuda), FixedProbe("cpu"))


@pytest.mark.parametrize(
    ("setting", "cuda", "expected"),
    [
        ("auto", ("cuda:0", "cuda:1"), ["cuda:0", "cuda:1"]),
        ("auto", (), ["cpu"]),
        ("cpu", ("cuda:0",), ["cpu"]),
        ("cuda:1", ("cuda:0", "cuda:1"), ["cuda:1"]),
        ("cuda", ("cuda:0", "cuda:1"), ["cuda:0", "cuda:1"]),
    ],
)
def test_the_setting_chooses_devices(setting: str, cuda: tuple[str, ...], expected: list[str]) -> None:
    assert [device.id for device in devices(setting, *cuda).all] == expected


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NoSuchDevice, match="cuda:3"):
        devices("cuda:3", "cuda:0")
    with pytest.raises(NoSuchDevice):
        devices().get("cuda:0")


def test_the_share_of_memory() -> None:
    assert devices().get("cpu").total_bytes == 600
    assert devices(memory_fraction=0.5).get("cpu").total_bytes == 500
    assert devices("auto", "cuda:0").get("cuda:0").total_bytes == int(1000 * CUDA_FRACTION)
    assert devices("auto", "cuda:0", memory_fraction=0.5).get("cuda:0").total_bytes == 500
    assert devices(memory_bytes=300).get("cpu").total_bytes == 300
    assert devices(memory_bytes=5000).get("cpu").total_bytes == 1000
    assert devices().free_bytes("cpu") == 7


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_cores(WorkerSettings(cores=3)) == 3
    monkeypatch.setattr("shared.host.num_cores", lambda: 5)
    assert num_cores(WorkerSettings()) == 5


class Contained:
    """A container that may use so much, and has so much left of it."""

    def __init__(self, limit: int, free: int | None) -> None:
        self._limit, self._free = limit, free

    def memory_bytes(self) -> int:
        return self._limit

    def free_bytes(self) -> int | None:
        return self._free


def test_a_container_s_memory_is_what_it_may_use_not_the_hosts() -> None:
    """A worker in a container of 1 GB promised the host's memory, and the kernel ended its replicas."""
    probe = CpuProbe(Contained(1 << 20, 1 << 10))  # type: ignore[arg-type]
    given = Devices(WorkerSettings(device="cpu", memory_fraction=0.5), FixedProbe(), probe)
    assert given.get("cpu").total_bytes == 1 << 19
    assert given.free_bytes("cpu") == 1 << 10
    free = CpuProbe(Contained(0, None))  # type: ignore[arg-type]
    ((_, total),) = free.devices()
    assert total == psutil.virtual_memory().total
    assert 0 < free.free_bytes("cpu") <= total


def test_a_name_is_made_once_and_kept(tmp_path: Path) -> None:
    settings = WorkerSettings(state_dir=tmp_path / "state")
    name = worker_name(settings)
    assert worker_name(settings) == name
    assert json.loads((tmp_path / "state" / "worker.json").read_text()) == {"name": name}
    assert worker_name(WorkerSettings(state_dir=tmp_path / "other")) != name
    assert worker_name(WorkerSettings(name="gpu1", state_dir=tmp_path / "state")) == "gpu1"
    with pytest.raises(ValueError, match="gpu 1"):
        worker_name(WorkerSettings(name="gpu 1"))


def planned(available: int, context: int = 1000) -> MemoryPlan:
    """100 bytes of weights, 10 of the rest, 1 byte a token."""
    blocks = (available - 110) // 32
    return MemoryPlan(
        dtype="float32",
        weights_bytes=100,
        activation_bytes=5,
        fixed_bytes=5,
        block_bytes=32,
        block_tokens=32,
        num_blocks=blocks,
        context_limit=min(context, blocks * 32),
        context_wanted=context,
    )


@pytest.mark.parametrize(
    ("options", "slots", "available", "cache"),
    [
        ({}, 1, 1 << 20, 2048 + 32),  # a usual job for its one slot
        ({}, 4, 1 << 20, 8192 + 32),
        ({}, 4, 110 + 3200, 3200),  # as far as there is room
        ({"cache_tokens": 320}, 4, 1 << 20, 320 + 32),
    ],
)
def test_the_cache_has_a_useful_size(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int], slots: int, available: int, cache: int
) -> None:
    monkeypatch.setattr(sizing.planning, "plan", lambda *_, memory_bytes, **__: planned(memory_bytes))
    model = ModelRecord(id="m", source="/m", options=options)
    made = size(Path("/m"), model, device_kind="cpu", available_bytes=available, slots=slots, prefill_tokens=64)
    assert made.memory_bytes == min(available, 110 + cache + sizing.MARGIN_BYTES)


def test_a_long_context_gets_a_cache_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing.planning, "plan", lambda *_, memory_bytes, **__: planned(memory_bytes, 50_000))
    made = size(
        Path("/m"), ModelRecord(id="m", source="/m"), device_kind="cpu", available_bytes=1 << 20, slots=2,
        prefill_tokens=64,
    )  # fmt: skip
    assert made.memory_bytes >= 110 + 50_000
