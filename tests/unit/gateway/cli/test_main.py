"""The command line as a program: what it prints, and how fast it starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.app import _welcome
from gateway.cli.home import DataDir, FleetFile

HEAVY = ("typer", "rich", "httpx", "pydantic", "nats", "fastapi", "torch")


def plexus(*argv: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.argv[1:] = {list(argv)!r}\nfrom gateway.cli import main\nmain()\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("argument", ["--version", "-V", "version"])
def test_the_version_costs_no_heavy_import(argument: str) -> None:
    done = plexus(argument, code=f"print(sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert done.stdout.splitlines()[0].startswith("plexus ")
    assert done.stdout.splitlines()[1] == "[]"


def test_the_help_needs_no_network_client() -> None:
    done = plexus("--help")
    assert done.returncode == 0
    for command in ("up", "serve", "status", "models", "load", "unload", "chat", "nats-config", "settings"):
        assert f" {command} " in done.stdout


def test_a_command_that_is_interrupted_while_it_imports_ends_quietly() -> None:
    program = """
import sys, types
class Slow(types.ModuleType):
    def __getattr__(self, name):
        raise KeyboardInterrupt
sys.modules["gateway.cli.app"] = Slow("gateway.cli.app")
from gateway.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_unknown_option_is_a_usage_error() -> None:
    assert plexus("up", "--modle", "x").returncode == 2


@pytest.mark.parametrize(("replicas", "limit"), [("0", "1"), ("65", "64")])
def test_a_number_of_replicas_that_no_intent_may_hold_is_a_usage_error(replicas: str, limit: str) -> None:
    done = plexus("load", "m", "--replicas", replicas)
    assert done.returncode == 2
    assert f"equal to {limit} " in done.stderr


def test_an_error_is_one_line_and_with_json_also_a_line_of_json(tmp_path: Path) -> None:
    done = plexus("status", "--json", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("plexus: no fleet found")
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith('{"error": "no fleet found')


def test_one_port_for_api_and_metrics_is_refused(tmp_path: Path) -> None:
    done = plexus("up", "--data-dir", str(tmp_path), "--port", "42313", "--metrics-port", "42313")
    assert done.returncode == 1
    assert done.stderr == "plexus: API and metrics cannot share port 42313. Choose another with --metrics-port.\n"


def test_the_annotated_settings_are_printed() -> None:
    assert "drain_grace_s = 30.0" in plexus("settings", "worker").stdout
    assert plexus("settings", "nothing").returncode == 1


def test_the_hint_of_a_fleet_elsewhere_leads_to_it(tmp_path: Path) -> None:
    fleet = FleetFile(api="http://h:1/v1", metrics="", nats="", user="", password="", models=["m"])
    there = tmp_path / "my fleet"
    assert f"plexus chat --data-dir '{there}'. " in _welcome(fleet, DataDir(there), is_elsewhere=True)
    assert "plexus chat. " in _welcome(fleet, DataDir(there), is_elsewhere=False)
