"""The files that are not code but must agree with it: settings, dependencies, containers."""

import importlib
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from shared.files import example, settings_file
from shared.settings import BrokerSettings, GatewaySettings, OperatorSettings, WorkerSettings, load

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SETTINGS = {
    "gateway.toml": GatewaySettings,
    "worker.toml": WorkerSettings,
    "operator.toml": OperatorSettings,
    "broker.toml": BrokerSettings,
}


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_annotated_settings_hold_every_option_with_its_default(name: str) -> None:
    written = tomllib.loads((ROOT / "config" / name).read_text())
    assert options(written) == options(SETTINGS[name]().model_dump(mode="json"))
    assert load(SETTINGS[name], ROOT / "config" / name) == load(SETTINGS[name], None)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_option_is_explained(name: str) -> None:
    unexplained = []
    lines = ["", *(ROOT / "config" / name).read_text().splitlines()]
    for before, line in itertools.pairwise(lines):
        is_first = before == "" or before.startswith("[")  # of a block that one comment explains
        if re.match(r"\w+ = ", line) and is_first:
            unexplained.append(line)
    assert unexplained == []


def options(table: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of all options in a table; an empty table counts as one."""
    found: set[str] = set()
    for key, value in table.items():
        found |= options(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key}
    return found


def test_there_is_an_annotated_file_for_every_process() -> None:
    module = importlib.import_module("shared.settings")
    processes = {
        cls
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, BaseModel) and cls.model_config.get("env_prefix")
    }
    assert processes == set(SETTINGS.values())


def test_a_named_file_goes_before_that_of_the_host_and_examples_are_never_read(tmp_path: Path) -> None:
    assert settings_file("gateway", None, tmp_path) is None
    (tmp_path / "gateway.toml").touch()
    assert settings_file("gateway", None, tmp_path) == tmp_path / "gateway.toml"
    assert settings_file("gateway", Path("mine.toml"), tmp_path) == Path("mine.toml")


def test_the_examples_are_found_and_ship_in_the_wheel() -> None:
    assert "slots = 32" in example("worker.toml").read_text()
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"config": "shared/_config"}
    with pytest.raises(FileNotFoundError, match=r"no\.toml; there are: broker, gateway, models, operator, worker$"):
        example("no.toml")


# --- dependencies --------------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    texts = [*project["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(r.name): r for r in map(Requirement, (line for line in lines if line and line[0] != "#"))}


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = constraints()
    for requirement in requirements():
        if requirement.name == "torch":
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is missing from constraints.txt: run scripts/freeze.py"
        (version,) = (one.version for one in pin.specifier)
        assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


def test_every_pin_is_exact() -> None:
    for pin in constraints().values():
        assert [one.operator for one in pin.specifier] == ["=="], f"{pin} is not exact"


def test_torch_is_pinned_in_the_set_up_script_and_nowhere_else() -> None:
    (version,) = re.findall(r"^torch_version=(\S+)", (ROOT / "plexus").read_text(), re.MULTILINE)
    (torch,) = (requirement for requirement in requirements() if requirement.name == "torch")
    assert torch.specifier.contains(version)
    assert not {"torch", "triton"} & set(constraints())
    for name in ("constraints.txt", "compose.yaml", "config/container/Dockerfile", ".ci/run"):
        assert version not in (ROOT / name).read_text(), f"{name} pins torch again"


def test_a_gateway_needs_no_torch() -> None:
    named = {Requirement(text).name for text in PYPROJECT["project"]["dependencies"]}
    assert not named & {"torch", "transformers", "tokenizers", "numpy"}


# --- containers ----------------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_compose_specification(tmp_path: Path) -> None:
    def check(path: Path) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    done = check(ROOT / "compose.yaml")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((ROOT / "compose.yaml").read_text().replace("image:", "imagee:"))
    assert check(wrong).returncode != 0  # the check can fail


def test_compose_runs_a_broker_two_gateways_and_two_workers() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"nats", "gateway-1", "gateway-2", "worker-1", "worker-2", "operator"}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert (
        len({service["environment"]["PLEXUS_WORKER__NAME"] for name, service in services.items() if "worker" in name})
        == 2
    )


def test_the_containers_are_given_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"gateway-1": GatewaySettings, "worker-2": WorkerSettings, "operator": OperatorSettings}
    for name, cls in kinds.items():
        for key, value in COMPOSE["services"][name]["environment"].items():
            monkeypatch.setenv(key, value)
        assert load(cls, None).bus.url == "nats://nats:4222"


def test_the_broker_is_given_every_password_that_its_configuration_names() -> None:
    conf = (ROOT / "config" / "nats" / "nats-server.conf").read_text()
    assert set(re.findall(r"\$([A-Z]\w*_PASSWORD)", conf)) == set(COMPOSE["services"]["nats"]["environment"])


def test_health_checks_hold_no_spaces() -> None:
    for service in COMPOSE["services"].values():
        for word in service.get("healthcheck", {}).get("test", []):
            assert " " not in word


def test_the_image_is_built_by_the_set_up_script_from_files_that_are_there() -> None:
    dockerfile = (ROOT / "config" / "container" / "Dockerfile").read_text()
    assert dockerfile.count("./plexus setup") == 2 + dockerfile.count("#   ./plexus setup")
    (copied,) = re.findall(r"^COPY (.+) \./$", dockerfile, re.MULTILINE)
    for name in copied.split():
        assert (ROOT / name).exists()
    targets = set(re.findall(r"AS (\w+)$", dockerfile, re.MULTILINE))
    built = {service["build"]["target"] for service in COMPOSE["services"].values() if "build" in service}
    assert built < targets
