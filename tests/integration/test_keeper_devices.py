"""A replica over several devices as its agent sees it: one grant on each, one record, one front that is told of all."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from shared.records import Assigned, ModelRecord
from shared.settings import WorkerSettings
from tests.support.eventually import eventually
from tests.support.tiny import make_checkpoint
from worker.agent.backoff import Failures
from worker.agent.devices import CpuProbe, DeviceInfo, Devices
from worker.agent.keeper import Host, Keeper
from worker.agent.ledger import Ledger
from worker.protocol import FrontConfig

GB = 1 << 30
MEASURED = 3 * GB
FRONT = """
import pathlib, socket, sys
from worker import protocol
from worker.channel import Channel

channel = Channel(socket.socket(fileno=int(sys.argv[sys.argv.index("--channel-fd") + 1])))
(frame,) = channel.receive(None)
pathlib.Path(sys.argv[1]).write_bytes(frame)
channel.send(protocol.encode(protocol.FrontStatus(state="ready", measured_bytes=int(sys.argv[2]))))
channel.receive(None)  # told to drain: nothing runs
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


def make_host(folder: Path) -> Host:
    """A host that counts as three devices of 8 GB, with eight cores."""
    settings = WorkerSettings(device="cpu", cpu_devices=3, memory_bytes=24 * GB, state_dir=folder)
    devices = Devices(settings, cpu=_Large(parts=3))
    return Host(
        worker="w1",
        settings=settings,
        devices=devices,
        ledger=Ledger({device.id: device.total_bytes for device in devices.all}, 8),
        failures=Failures(),
        cores=8,
        changed=lambda: None,
        num_assigned=lambda: 1,
        front_command=(sys.executable, "-c", FRONT, str(folder / "config"), str(MEASURED)),
    )


class _Large(CpuProbe):
    """As much memory as this test wants."""

    def devices(self) -> list[tuple[DeviceInfo, int]]:
        return [(info, 8 * GB) for info, _ in super().devices()]

    def free_bytes(self, device: str) -> int:
        return 8 * GB


async def test_each_device_gives_as_much_and_all_come_back(checkpoint: Path, tmp_path: Path) -> None:
    host = make_host(tmp_path)
    host.ledger.reserve("other", "cpu:1", 7 * GB, cores=1, free_bytes=8 * GB)
    model = ModelRecord(id="m", source=str(checkpoint), devices=2)
    keeper = Keeper(host, Assigned(model=model))  # wherever there is room
    task = asyncio.create_task(keeper.run())
    await eventually(lambda: keeper.record is not None and keeper.record.state == "ready", 30.0)
    record = keeper.record
    assert record is not None
    assert record.devices == ["cpu:0", "cpu:2"]
    config = msgspec.json.decode((tmp_path / "config").read_bytes(), type=FrontConfig)
    assert (config.device, config.followers, config.threads) == ("cpu:0", ["cpu:2"], 4)
    assert config.memory_bytes == record.estimated_bytes
    assert record.measured_bytes == MEASURED
    assert [host.ledger.reserved_bytes(f"cpu:{number}") for number in range(3)] == [MEASURED, 7 * GB, MEASURED]
    keeper.want(None)
    await task
    assert [host.ledger.reserved_bytes(f"cpu:{number}") for number in range(3)] == [0, 7 * GB, 0]


@pytest.mark.parametrize(
    ("devices", "assigned", "words"),
    [
        (4, [], "over 4 devices, but this host has 3"),
        (3, [], "num_attention_heads 4, num_key_value_heads 2 cannot be shared out evenly between 3"),
        (2, ["cpu:0", "cpu:1"], "on cpu:1"),
    ],
)
async def test_what_cannot_be_is_refused(
    checkpoint: Path, tmp_path: Path, devices: int, assigned: list[str], words: str
) -> None:
    host = make_host(tmp_path)
    host.ledger.reserve("other", "cpu:1", 8 * GB, cores=1, free_bytes=8 * GB)
    model = ModelRecord(id="m", source=str(checkpoint), devices=devices)
    keeper = Keeper(host, Assigned(model=model, devices=assigned))
    task = asyncio.create_task(keeper.run())
    await eventually(lambda: host.failures.all(), 30.0)
    (failure,) = host.failures.all()
    assert words in failure.reason
    assert host.ledger.reserved_bytes("cpu:0") == 0
    keeper.want(None)
    await task
