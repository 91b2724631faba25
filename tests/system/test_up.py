"""`plexus up` from the first to the last moment: side by side, refusals, deaths, and nothing left behind."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.fleet_process import FleetProcess, chat_body, plexus, wait_for
from tests.support.freeze import frozen


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[FleetProcess]:
    """A fleet that the tests of this module may hurt, but not end."""
    with FleetProcess(tmp_path_factory.mktemp("fleet"), "--model", tiny) as fleet:
        yield fleet.started()


def works(fleet: FleetProcess, model: str = "tiny") -> bool:
    try:
        answer = httpx.post(f"{fleet.api}/chat/completions", json=chat_body(model, max_tokens=4), timeout=60)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def test_two_fleets_run_side_by_side(fleet: FleetProcess, tmp_path: Path, other: Path) -> None:
    with FleetProcess(tmp_path, "--model", other) as second:
        second.started()
        assert works(fleet)
        assert works(second, "other")
        assert not works(second, "tiny")
        assert second.status()["workers"][0]["pid"] == second.facts["pids"]["worker-1"]
        assert fleet.status()["workers"][0]["pid"] == fleet.facts["pids"]["worker-1"]
        # SIGTERM ends the one in good order and leaves the other alone.
        second.tree()
        assert second.end(signal.SIGTERM) == 0
        wait_for(lambda: not second.left(), timeout_s=5.0)
        assert not (second.data_dir / "fleet.json").exists()
        assert mentioning(second.data_dir) == []
    assert works(fleet)


def mentioning(folder: Path) -> list[int]:
    """Processes whose command line names this folder, found without asking anyone."""
    found = []
    for one in psutil.process_iter():
        try:
            if any(str(folder) in word for word in one.cmdline()):
                found.append(one.pid)
        except psutil.Error:
            continue
    return found


def test_a_data_directory_has_one_fleet(fleet: FleetProcess) -> None:
    done = plexus("up", "--data-dir", fleet.data_dir, "--port", "0", "--json")
    assert done.returncode == 1
    assert f"in use by plexus up with pid {fleet.process.pid}" in done.stderr
    assert "--data-dir" in done.stdout
    assert fleet.status()["workers"]  # its fleet.json is still there


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path, tiny: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = plexus("up", "--data-dir", tmp_path / "d", "--port", str(port), "--model", tiny)
    assert done.returncode == 1
    assert (
        done.stderr == f"plexus: port {port} on 127.0.0.1 is taken. Choose another with --port (0 picks a free one).\n"
    )


@pytest.mark.parametrize("model", ["no-such-model", "/no/such/directory"])
def test_a_model_that_is_none_is_refused_before_anything_starts(tmp_path: Path, model: str) -> None:
    done = plexus("up", "--data-dir", tmp_path / "d", "--port", "0", "--model", model)
    assert done.returncode == 1
    assert model in done.stderr


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "nonsense"}')
    with FleetProcess(tmp_path, "--model", broken) as fleet:
        assert "broken could not be loaded: " in fleet.line()["error"]
        assert fleet.process.wait(30) == 1
        assert mentioning(fleet.data_dir) == []
        assert not (fleet.data_dir / "fleet.json").exists()


def test_whatever_dies_comes_back(fleet: FleetProcess) -> None:
    for name in ("gateway", "worker-1", "nats"):
        pid = pids(fleet)[name]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda name=name, pid=pid: pids(fleet)[name] not in (0, pid))
        wait_for(lambda: works(fleet), timeout_s=60.0)
    said = fleet.said()
    assert re.findall(r"^(\S+) died", said, re.MULTILINE) == ["gateway", "worker-1", "nats"]


def pids(fleet: FleetProcess) -> dict[str, int]:
    found: dict[str, int] = json.loads((fleet.data_dir / "fleet.json").read_text())["pids"]
    return found


def test_a_killed_fleet_takes_its_processes_along_and_starts_again_where_it_was(tmp_path: Path, tiny: Path) -> None:
    with FleetProcess(tmp_path, "--model", tiny) as first:
        first.started()
        first.tree()
        first.end(signal.SIGKILL)
        wait_for(lambda: not first.left(), timeout_s=10.0)
        assert mentioning(first.data_dir) == []
        done = plexus("status", "--data-dir", first.data_dir)
        assert (done.returncode, "no fleet found" in done.stderr) == (1, True)
    with FleetProcess(tmp_path, "--model", tiny) as second:
        second.started()
        assert works(second)
        # A first Ctrl-C waits for a worker that does not answer; a second one does not.
        second.tree()
        with frozen(second.facts["pids"]["worker-1"]):
            second.process.send_signal(signal.SIGINT)
            wait_for(lambda: "stopping" in second.said())
            assert second.process.poll() is None
            assert second.end(signal.SIGINT, timeout_s=5.0) == 0
            wait_for(lambda: not second.left(), timeout_s=5.0)


def test_it_can_be_ended_before_it_is_ready(tmp_path: Path, tiny: Path) -> None:
    with FleetProcess(tmp_path, "--model", tiny) as fleet:
        wait_for(lambda: "tiny: busy" in fleet.said(), timeout_s=60.0)
        fleet.tree()
        assert fleet.end(signal.SIGTERM) == 0
        wait_for(lambda: not fleet.left(), timeout_s=5.0)
        assert fleet.process.stdout is not None
        assert fleet.process.stdout.read() == b""
