"""Which processors belong to the parts of a divided host."""

from pathlib import Path

import pytest

from shared.settings import WorkerSettings
from worker.agent.devices import CpuProbe, Devices
from worker.agent.numa import cpus_of


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    for number, text in enumerate(["0-1,4", "2-3,5-6\n", ""]):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(text)
    return tmp_path


def test_a_part_has_a_nodes_processors_where_there_are_as_many(nodes: Path) -> None:
    assert cpus_of(2, nodes, {0, 1, 2, 3, 4, 5}) == [[0, 1, 4], [2, 3, 5]]
    assert cpus_of(3, nodes, set(range(7))) == [[], [], []]  # the third node is memory alone
    assert cpus_of(2, nodes, {0, 1}) == [[], []]  # the second node is not ours
    assert cpus_of(1, nodes, {0, 1}) == [[]]


def test_a_host_counts_as_several_devices_with_an_even_share_each() -> None:
    settings = WorkerSettings(device="cpu", cpu_devices=4, memory_bytes=4 << 20)
    devices = Devices(settings, cpu=CpuProbe(parts=4))
    assert [(device.id, device.total_bytes) for device in devices.all] == [(f"cpu:{n}", 1 << 20) for n in range(4)]
    whole = Devices(WorkerSettings(device="cpu"), cpu=CpuProbe())
    assert devices.free_bytes("cpu:3") < whole.free_bytes("cpu") / 3
    assert [device.id for device in Devices(WorkerSettings(device="cpu:1", cpu_devices=2)).all] == ["cpu:1"]
