"""What the argument of --model means."""

from pathlib import Path

import pytest

from gateway.cli.errors import CliError, UnknownModel
from gateway.cli.intents import named_model


def test_a_directory_is_a_model_with_its_name_and_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for text in ("my-model", "./my-model/", str(tmp_path / "my-model")):
        model = named_model(text)
        assert (model.id, model.source) == ("my-model", str(tmp_path / "my-model"))


def test_a_hub_id_is_its_own_source() -> None:
    model = named_model("Qwen/Qwen3-0.6B")
    assert (model.id, model.source) == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"no config\.json"):
        named_model(str(tmp_path))


@pytest.mark.parametrize("text", ["nonsense", "/no/such/directory", "./no/such", "a/b/c", "../x"])
def test_anything_else_is_unknown(text: str) -> None:
    with pytest.raises(UnknownModel, match="hub id"):
        named_model(text)
