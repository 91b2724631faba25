"""Settings of the system before this one, translated."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.app import app
from gateway.cli.seed_import import translate
from gateway.models_file import parse
from shared.errors import SettingsError
from shared.settings import GatewaySettings, SourceSettings, WorkerSettings, load

CORTEX = """
models_config = "/etc/cortex/models.toml"
[gateway]
listen = "0.0.0.0:31313"
metrics_listen = "0.0.0.0:31314"
[eviction]
strategy = "priority"
defrag_after_cycles = 50
[[neurons]]
name = "beast"
endpoint = "http://10.0.0.2:13131"
[entitlements]
require_auth = true
"""

MODELS = """
[[models]]
id = "Qwen/Qwen3-32B"
harness = "candle"
quant = "q6k"
vram_mb = 30000
min_devices = 2
min_device_vram_mb = 16000
pinned_on = ["beast"]
limit = { context = 32768, output = 8192 }
cost = { input = 0.5, output = 1.5, cache_write = 0.1 }
capabilities = ["tool_call", "reasoning", "audio"]
[[models]]
id = "org/plain"
harness = "candle"
source = "lab"
residency_priority = 5000
colour = "red"
[aliases]
big = "Qwen/Qwen3-32B"
"""


NEURON = """
port = 13131
[[harnesses]]
name = "candle"
[[default_models]]
model_id = "Qwen/Qwen3-8B"
harness = "candle"
[harness.candle]
hf_cache = "/var/lib/hf"
default_source = "huggingface"
[harness.candle.sources.huggingface]
endpoint = "https://huggingface.co"
[harness.candle.sources.lab]
endpoint = "https://hub.example.org"
auth_env = "LAB_TOKEN"
cache_dir = "/var/lib/lab"
[harness.candle.prefix_cache]
enabled = true
budget_mb = 1024
max_entries = 8
[harness.candle.context_limit]
target_prefill_latency_secs = 120
[harness.candle.admission]
max_in_flight = 4
kv_max_wait_secs = 240
[harness.candle.image]
te_device = "cpu"
"""


def keys_of(table: dict[str, Any]) -> set[str]:
    """Every key in a file, without those of entries and names of tables."""
    found: set[str] = set()
    for key, value in table.items():
        inner = value if isinstance(value, list) else [value]
        tables = [one for one in inner if isinstance(one, dict)]
        found |= {key} if not tables else set().union(*(keys_of(one) for one in tables))
    return found


def test_every_key_is_translated_or_named() -> None:
    """Also those that are called otherwise afterwards: they are in a list of what was understood."""
    understood = {"name", "endpoint", "id", "min_devices", "min_device_vram_mb", "pinned_on", "residency_priority"}
    understood |= {"source", "context", "input", "output", "strategy", "listen", "metrics_listen", "capabilities"}
    understood |= {"harness", "cache_dir", "big", "model_id", "require_auth", "defrag_after_cycles"}
    for name, text in (("cortex.toml", CORTEX), ("models.toml", MODELS), ("neuron.toml", NEURON)):
        notes = "\n".join(translate({name: text}).notes)
        missing = {key for key in keys_of(tomllib.loads(text)) if key not in notes and key not in understood}
        assert not missing


def test_a_workers_mirrors_and_seats_are_taken_over(tmp_path: Path) -> None:
    found = translate({"neuron.toml": NEURON})
    (tmp_path / "worker.toml").write_text(found.worker_toml())
    settings = load(WorkerSettings, tmp_path / "worker.toml")
    assert settings.slots == 4
    assert settings.sources == {"lab": SourceSettings(endpoint="https://hub.example.org", cache_dir="/var/lib/lab")}
    assert not found.gateway and not found.models
    told = "\n".join(found.notes)
    for part in (
        "HF_HUB_CACHE",
        "token_file",
        "HF_ENDPOINT",
        "prefix_cache.budget_mb",
        "kv_max_wait_secs",
        "te_device",
    ):
        assert part in told


def test_the_gateways_settings_load_after_the_translation(tmp_path: Path) -> None:
    found = translate({"cortex.toml": CORTEX})
    (tmp_path / "gateway.toml").write_text(found.gateway_toml())
    settings = load(GatewaySettings, tmp_path / "gateway.toml")
    assert settings.listen == "0.0.0.0:31313"
    assert settings.models == "/etc/cortex/models.toml"
    assert (settings.eviction.strategy, settings.eviction.defrag_after_cycles) == ("priority", 50)


def test_the_catalogue_is_good_after_the_translation() -> None:
    found = translate({"models.toml": MODELS})
    big, plain = parse(found.models_toml(), "f")
    assert (big.id, big.source, big.quantization, big.devices) == ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", "int8", 2)
    assert (big.memory_floor_bytes, big.workers, big.residency) == (16000 << 20, ["beast"], 1000)
    assert (big.context_limit, big.cost, big.aliases) == (32768, {"input": 0.5, "output": 1.5}, ["big"])
    assert big.capabilities == {"tools": True, "reasoning": True}
    assert (plain.source, plain.residency) == ("lab:org/plain", 1000)


@pytest.mark.parametrize(
    "part",
    (
        "plexus-worker --name beast",
        "entitlements",
        "no effect",
        "vram_mb",
        "limit.output",
        "cache_write",
        "'audio'",
        "colour",
        "5000",
        "'lab'",
        "'q6k'",
    ),
)
def test_what_has_no_counterpart_is_named(part: str) -> None:
    notes = translate({"cortex.toml": CORTEX, "models.toml": MODELS}).notes
    assert any(part in note for note in notes), notes


def test_profiles_by_name_and_the_older_list_of_hosts_are_understood() -> None:
    found = translate({"c": '[[nodes]]\nname = "old"\nvram_mb = 1\n[profiles."org/x"]\nmin_devices = 1\n'})
    assert found.models == [{"id": "org/x", "source": "org/x", "devices": 1, "residency": 100}]
    assert "old" in found.notes[0]
    assert "vram_mb" in found.notes[1]


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="not valid TOML"):
        translate({"x": "{"})
    with pytest.raises(SettingsError, match="old system"):
        translate({"x": "[[models]]\nid = 'a'\nlimit = 3\n"})


def test_the_command_writes_both_files_once(tmp_path: Path) -> None:
    (tmp_path / "cortex.toml").write_text(CORTEX)
    (tmp_path / "models.toml").write_text(MODELS)
    arguments = ["config", "import", str(tmp_path / "cortex.toml"), str(tmp_path / "models.toml")]
    out = tmp_path / "new"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert tomllib.loads((out / "models.toml").read_text())["aliases"] == {"big": "Qwen/Qwen3-32B"}
    assert load(GatewaySettings, out / "gateway.toml").models == str(out / "models.toml")
    assert not (out / "worker.toml").exists()
    again = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert again.exit_code != 0


def test_the_check_names_models_and_errors(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('[[model]]\nid = "a"\nsource = "org/a"\n[aliases]\nb = "a"\n')
    result = CliRunner().invoke(app, ["config", "check", str(tmp_path / "m.toml")])
    assert "1 models, 1 aliases" in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nlisten = 5", r"the translated gateway.toml: listen = 5: .*valid string.* Correct it"),
        ('[eviction]\nstrategy = "fifo"', r"eviction.strategy = 'fifo': .*'lru' or 'priority'"),
        ("[harness.candle.sources.lab]\nendpoint = 3", r"the translated worker.toml: sources.lab.endpoint = 3"),
        (
            '[[models]]\nid = "a/b"\nresidency_priority = "high"',
            r"model 'a/b': residency_priority = 'high' is no whole",
        ),
        ('[[models]]\nid = "a/b"\nmin_device_vram_mb = true', r"model 'a/b': min_device_vram_mb = True is no whole"),
        ('[[models]]\nid = "a/b"\nlimit = 3', r"model 'a/b': "),
    ],
)
def test_odd_values_are_refused_by_name_before_anything_is_written(tmp_path: Path, text: str, said: str) -> None:
    """A gateway would have refused what was written, or taken it in another meaning."""
    (tmp_path / "old.toml").write_text(text)
    done = CliRunner().invoke(app, ["config", "import", str(tmp_path / "old.toml"), "--out", str(tmp_path / "new")])
    assert done.exit_code != 0
    assert re.search(said, str(done.exception or "") + done.output), (done.exception, done.output)
    assert not (tmp_path / "new").exists()


def test_one_host_as_a_text_is_one_host() -> None:
    """It became a list of its letters."""
    found = translate({"models.toml": '[[models]]\nid = "a/b"\npinned_on = "beast"'})
    assert found.models[0]["workers"] == ["beast"]


def test_a_host_that_no_worker_can_be_called_after_is_told() -> None:
    (note,) = translate({"c.toml": '[[neurons]]\nname = "the beast"'}).notes
    assert "no worker can be called so" in note and "--name the beast" not in note


def test_an_empty_file_is_no_riddle(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text("")
    done = CliRunner().invoke(app, ["config", "import", str(tmp_path / "old.toml")])
    assert done.exit_code == 0 and "has a counterpart" in done.output
