"""Settings from file, environment and command line."""

import itertools
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.errors import SettingsError
from shared.files import example
from shared.settings import (
    BrokerSettings,
    BusSettings,
    GatewaySettings,
    SourceSettings,
    WorkerSettings,
    load,
    log_format,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("PLEXUS_"):
            monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_defaults_when_nothing_is_given():
    assert load(GatewaySettings, None) == GatewaySettings()
    assert GatewaySettings().listen == "127.0.0.1:31313"
    assert BusSettings().url == "nats://127.0.0.1:4222"


def test_command_line_over_environment_over_file(tmp_path, monkeypatch):
    path = write(tmp_path, 'slots = 1\ncores = 1\nprefill_tokens = 1\n[bus]\nurl = "nats://file"\nuser = "file"\n')
    monkeypatch.setenv("PLEXUS_WORKER__CORES", "2")
    monkeypatch.setenv("PLEXUS_WORKER__SLOTS", "2")
    monkeypatch.setenv("PLEXUS_WORKER__BUS__URL", "nats://environment")
    settings = load(WorkerSettings, path, {"slots": 3, "cores": None, "bus": {"password": "p", "url": None}})
    assert (settings.slots, settings.cores, settings.prefill_tokens) == (3, 2, 1)
    assert settings.bus == BusSettings(url="nats://environment", user="file", password="p")


def test_environment_of_another_process_is_left_alone(monkeypatch):
    monkeypatch.setenv("PLEXUS_WORKER__SLOTS", "7")
    monkeypatch.setenv("PLEXUS_GATEWAY__LISTEN", "0.0.0.0:1")
    assert load(GatewaySettings, None).listen == "0.0.0.0:1"
    assert load(WorkerSettings, None).slots == 7
    assert WorkerSettings().slots == 32  # constructing one reads nothing


def test_tables_come_through_the_environment_as_json(monkeypatch):
    monkeypatch.setenv("PLEXUS_BROKER__WORKERS", '{"gpu1": "x"}')
    assert load(BrokerSettings, None).workers == {"gpu1": "x"}


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sloots = 1", "sloots", "slots"),
        ("[bus]\nusr = 'x'", "bus.usr", "bus.user"),
        ("prefil_tokens = 1\n", "prefil_tokens", "prefill_tokens"),
        ("[sources.lab]\nendpont = 'https://x'", "sources.lab.endpont", "sources.lab.endpoint"),
    ],
)
def test_unknown_key_in_a_file_names_the_nearest(tmp_path, text, key, nearest):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(WorkerSettings, path)
    assert str(caught.value) == f"{path}: there is no setting {key}; the nearest is {nearest}"


@pytest.mark.parametrize("name", ["PLEXUS_WORKER__BUS__URLL", "plexus_worker__bus__urll"])
def test_unknown_key_in_the_environment_names_the_nearest(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match=rf"{name}.*no setting bus.urll; the nearest is bus.url"):
        load(WorkerSettings, None)


def test_unknown_override_names_the_nearest():
    with pytest.raises(SettingsError, match="the command line: there is no setting devise; the nearest is device"):
        load(WorkerSettings, None, {"devise": "cpu"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slots = 0", "setting slots: "),
        ("slots = 'many'", "setting slots: "),
        ("[bus]\nconnect_timeout_s = 0", "setting bus.connect_timeout_s: "),
        ("[bus]\nuser = 'a b'", "setting bus.user: "),
        ("log_level = 'loud'", "setting log_level: "),
        ("bus = 'nats://x'", "setting bus: "),
        ("slots = ", "is not valid TOML"),
        ("[sources.lab]\ntoken = 'x'", "setting sources.lab.endpoint: "),
        ("[sources.lab]\nendpoint = 'hub.example.org'", "setting sources.lab.endpoint: "),
        ("[sources.Lab]\nendpoint = 'https://x'", "'Lab' is no scheme"),
        ("[sources.huggingface]\nendpoint = 'https://x'", "'huggingface' is no scheme"),
    ],
)
def test_bad_value_names_the_setting(tmp_path, text, message):
    with pytest.raises(SettingsError) as caught:
        load(WorkerSettings, write(tmp_path, text))
    assert message in str(caught.value)


def test_mirrors_come_from_the_file_and_the_environment(tmp_path, monkeypatch):
    path = write(tmp_path, "[sources.lab]\nendpoint = 'https://lab'\n")
    monkeypatch.setenv("PLEXUS_WORKER__SOURCES__LAB__TOKEN", "geheim")
    settings = load(WorkerSettings, path)
    assert settings.sources == {"lab": SourceSettings(endpoint="https://lab", token="geheim")}
    assert "geheim" not in repr(settings)


def test_the_annotated_file_shows_every_key_of_a_mirror():
    lines = example("worker.toml").read_text().splitlines()
    start = lines.index("# [sources.lab]")
    shown = itertools.takewhile(lambda line: line.startswith("# "), lines[start:])
    table = tomllib.loads("\n".join(line.removeprefix("# ") for line in shown))["sources"]["lab"]
    assert set(table) == set(SourceSettings.model_fields)
    SourceSettings(**table)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*nowhere"):
        load(WorkerSettings, tmp_path / "nowhere.toml")


def test_secrets_are_not_shown():
    settings = BrokerSettings(gateway_password="geheim", workers={"gpu1": "geheim"})
    assert "geheim" not in repr(settings) + repr(GatewaySettings(bus=BusSettings(password="geheim")))


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        GatewaySettings().listen = "x"


def test_home_of_the_worker_is_expanded():
    assert WorkerSettings().state_dir.is_absolute()
    assert WorkerSettings(state_dir=Path("~/x")).state_dir == Path.home() / "x"


def test_log_format(monkeypatch):
    assert log_format() == "line"
    monkeypatch.setenv("PLEXUS_LOG", "JSON")
    assert log_format() == "json"
