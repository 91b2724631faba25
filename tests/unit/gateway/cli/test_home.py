"""The data directory: one owner at a time, a fleet file that only its owner reads, nothing stale."""

import os
import stat
from pathlib import Path

import pytest

from gateway.cli.errors import CliError, DataDirInUse, NoFleet
from gateway.cli.home import FLEET_FILE, DataDir, FleetFile


def fleet(**changes: object) -> FleetFile:
    fields = {
        "api": "http://127.0.0.1:1/v1",
        "metrics": "http://127.0.0.1:2/metrics",
        "nats": "nats://127.0.0.1:3",
        "user": "operator",
        "password": "secret",
        "models": ["m"],
        "pids": {"nats": 7},
    }
    return FleetFile(**fields | changes)


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as home:
        home.write(fleet())
        assert DataDir(tmp_path / "d").read() == fleet(pid=os.getpid())


def test_the_fleet_file_is_private(tmp_path: Path) -> None:
    with DataDir(tmp_path) as home:
        home.write(fleet())
        home.write(fleet(models=[]))
        assert stat.S_IMODE((tmp_path / FLEET_FILE).stat().st_mode) == 0o600
        assert "secret" not in str(home.read().public())


def test_a_second_owner_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with DataDir(tmp_path), pytest.raises(DataDirInUse, match=f"pid {os.getpid()}"), DataDir(tmp_path):
        pass


def test_an_owner_that_left_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with DataDir(tmp_path) as home:
        home.write(fleet())
    with pytest.raises(NoFleet):
        DataDir(tmp_path).read()
    with DataDir(tmp_path):
        pass


def test_the_file_of_a_fleet_that_was_killed_counts_as_none(tmp_path: Path) -> None:
    gone = 2**22 + 1  # above the largest pid of Linux
    DataDir(tmp_path).write(fleet(pid=gone))
    with pytest.raises(NoFleet, match="plexus up"):
        DataDir(tmp_path).read()
    with DataDir(tmp_path):
        assert not (tmp_path / FLEET_FILE).exists()


def test_a_fleet_file_that_is_no_json_names_itself(tmp_path: Path) -> None:
    (tmp_path / FLEET_FILE).write_text("{")
    with pytest.raises(CliError, match=FLEET_FILE):
        DataDir(tmp_path).read()


def test_a_directory_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CliError, match="file/d"), DataDir(tmp_path / "file" / "d"):
        pass
