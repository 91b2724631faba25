"""What the processes of an embedded fleet are started with."""

import errno
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli import processes
from gateway.cli.errors import CliError, PortTaken
from gateway.cli.home import DataDir
from gateway.cli.processes import Address, free_address, toml
from shared.settings import BusSettings, GatewaySettings, WorkerSettings, load

BUS = BusSettings(url="nats://127.0.0.1:4000", user="worker", password='quo"ted')


def test_settings_survive_the_journey_through_toml() -> None:
    settings = {"name": 'a "b"\\', "cores": 3, "fraction": 0.5, "on": True, "bus": {"url": "nats://x", "password": "é"}}
    assert tomllib.loads(toml(settings)) == settings


def test_workers_share_cores_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "num_cores", lambda: 8)
    with DataDir(tmp_path) as home:
        for number in (1, 2, 3):
            processes.worker_child(number, 3, home, BUS, verbose=False, on_change=print)
    settings = load(WorkerSettings, tmp_path / "worker-2.toml")
    assert (settings.name, settings.cores, settings.memory_fraction) == ("worker-2", 2, 0.2)
    assert settings.state_dir == tmp_path / "worker-2"
    assert settings.bus == BUS


def test_the_gateway_listens_where_it_was_told(tmp_path: Path) -> None:
    api, metrics = Address(host="0.0.0.0", port=1), Address(host="::1", port=2)
    with DataDir(tmp_path) as home:
        processes.gateway_child(home, BUS, api, metrics, verbose=True, on_change=print)
    settings = load(GatewaySettings, tmp_path / "gateway.toml")
    assert (settings.listen, settings.metrics_listen) == ("0.0.0.0:1", "[::1]:2")
    assert (tmp_path / "gateway.toml").stat().st_mode & 0o077 == 0  # the file holds a password


def test_a_client_on_this_host_is_given_an_address_it_can_use() -> None:
    assert str(Address(host="0.0.0.0", port=1).near) == "127.0.0.1:1"
    assert str(Address(host="::", port=1).near) == "[::1]:1"
    assert str(Address(host="10.0.0.1", port=1).near) == "10.0.0.1:1"


def test_port_0_finds_a_free_one_and_a_taken_one_is_refused() -> None:
    assert free_address("127.0.0.1", 0, "--port").port > 0
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortTaken, match="--metrics-port"):
            free_address("127.0.0.1", other.getsockname()[1], "--metrics-port")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "'h' leads to no address.*--host"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "h is no address of this machine.*--host"),
        (PermissionError(errno.EACCES, "Permission denied"), "port 80 on h may not be used.*--port"),
        (OSError(errno.EAFNOSUPPORT, "No such family"), "port 80 of h: No such family.*--host"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_from_one_that_is_taken(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(*_: object) -> None:
        raise error

    monkeypatch.setattr(processes.socket, "socket", lambda *_: Probe(bind))
    with pytest.raises(CliError, match=words) as raised:
        free_address("h", 80, "--port")
    assert not isinstance(raised.value, PortTaken)


class Probe(socket.socket):
    """A socket that is bound by someone else's rules."""

    def __init__(self, bind: Callable[..., None]) -> None:
        super().__init__()
        self.bind = bind


def test_a_foreign_address_and_a_name_that_is_none_are_refused() -> None:
    with pytest.raises(CliError, match="no address of this machine"):
        free_address("192.0.2.1", 0, "--port")
    with pytest.raises(CliError, match="leads to no address"):
        free_address("no..name", 0, "--port")
