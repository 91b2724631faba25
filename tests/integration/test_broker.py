"""The nats-server as a child process."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared import names, topology
from shared.broker import EmbeddedBroker, server_binary
from shared.bus import Bus
from shared.errors import BrokerError
from shared.kv import Bucket
from shared.process import bound_to_parent, is_running
from tests.support.eventually import eventually


async def test_keeps_its_port_and_its_store_over_restarts(broker, bus):
    port, pid = broker.port, broker.pid
    await bus.enqueue(names.job_subject("m", "batch"), b"job", msg_id="a.1", ttl_s=60)
    revision = await Bucket(bus, names.PLAN).put("model.m", b"{}")
    broker.kill()
    assert broker.pid == 0
    await broker.start()
    assert broker.port == port and broker.pid != pid
    assert await eventually(lambda: Bucket(bus, names.PLAN).get("model.m")) == (b"{}", revision)
    await broker.stop()
    await broker.start()
    assert broker.port == port
    info = await eventually(lambda: bus.api("STREAM.INFO.JOBS", {}))
    assert info["state"]["messages"] == 1


async def test_passwords_are_kept_and_private(broker, tmp_path):
    settings = broker.bus_settings("worker")
    assert EmbeddedBroker(tmp_path / "nats").bus_settings("worker").password == settings.password
    assert settings.password not in repr(settings)
    for name in ("passwords.json", "nats-server.conf"):
        assert stat.S_IMODE((tmp_path / "nats" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700


async def test_starting_and_stopping_twice_is_fine(tmp_path):
    broker = EmbeddedBroker(tmp_path)
    await broker.stop()
    await broker.start()
    pid = broker.pid
    await broker.start()
    assert broker.pid == pid
    await broker.stop()
    await broker.stop()
    broker.kill()
    assert not is_running(pid)


async def test_stops_in_good_order(tmp_path):
    broker = EmbeddedBroker(tmp_path)
    await broker.start()
    process = broker._process
    await broker.stop()
    assert process.returncode == 0


async def test_port_that_is_taken_is_an_error_that_says_so(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        broker = EmbeddedBroker(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(BrokerError, match="address already in use"):
            await broker.start()
    assert broker.pid == 0


async def test_bad_configuration_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.broker.render", lambda _: "max_payload: many\n")
    broker = EmbeddedBroker(tmp_path)
    with pytest.raises(BrokerError, match=r"nats-server.conf:1:0"):
        await broker.start()


async def test_several_side_by_side(tmp_path):
    async with EmbeddedBroker(tmp_path / "a") as one, EmbeddedBroker(tmp_path / "b") as two:
        assert one.port != two.port
        async with await Bus.connect(two.bus_settings("gateway"), kind="gateway", ident="x") as bus:
            await topology.ensure(bus)


_PARENT = """
import asyncio, sys
from pathlib import Path
from shared.broker import EmbeddedBroker

async def main():
    async with EmbeddedBroker(Path(sys.argv[1])) as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
async def test_ends_with_its_parent(tmp_path):
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    assert is_running(pid)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not is_running(pid))


async def test_needs_the_main_thread(tmp_path):
    errors: list[Exception] = []

    def work() -> None:
        try:
            asyncio.run(EmbeddedBroker(tmp_path).start())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "main thread" in str(errors[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_child_of_a_parent_that_is_already_gone_does_not_start(tmp_path):
    mark = tmp_path / "ran"
    command = bound_to_parent(["/usr/bin/touch", str(mark)])
    assert subprocess.run(command, timeout=10).returncode == 0 and mark.exists()
    mark.unlink()
    # In between stands a shell: the parent that the child finds is not the one that it was started for.
    line = " ".join(command) + "; exit $?"
    assert subprocess.run(["/bin/sh", "-c", line], timeout=10).returncode == 1
    assert not mark.exists()


def test_is_running_knows_a_zombie():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(child.pid)
    child.wait()
    assert not is_running(child.pid)
    assert is_running(os.getpid())


def test_configuration_is_what_the_server_accepts():
    """The file for production, read by the server itself."""
    config = Path(__file__).parents[2] / "config" / "nats" / "nats-server.conf"
    passwords = {f"{who}_PASSWORD": "x" for who in ("GATEWAY", "OPERATOR", "WORKER", "SYSTEM")}
    checked = subprocess.run(
        [server_binary(), "-t", "-c", str(config)], env=passwords, capture_output=True, text=True, timeout=20
    )
    assert checked.returncode == 0, checked.stderr


async def test_broker_stops_a_server_that_does_not_obey(broker, monkeypatch):
    monkeypatch.setattr("shared.broker.STOP_S", 0.2)
    pid = broker.pid
    os.kill(pid, signal.SIGSTOP)
    await broker.stop()
    assert not is_running(pid)
