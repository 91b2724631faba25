"""Which files make a servable model."""

import json
from pathlib import Path

import pytest

from worker.models.errors import NotServable
from worker.models.files import check_config, check_directory, choose

SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def test_one_file_of_weights_and_everything_small_beside_it() -> None:
    names = [*SMALL, "model.safetensors", "pytorch_model.bin", "README.md", "LICENSE.txt", "onnx/model.onnx", "x.gguf"]
    assert choose(names, "repo") == sorted([*SMALL, "model.safetensors"])


def test_shards_come_with_their_index_and_without_the_original_checkpoint() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "original/consolidated.00.pth", "pytorch_model.bin.index.json"]
    assert choose([*SMALL, *shards, *others], "repo") == sorted([*SMALL, *shards])


def test_a_single_file_wins_over_shards() -> None:
    names = [*SMALL, "model.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert choose(names, "repo") == sorted([*SMALL, "model.safetensors"])


def test_named_chat_templates_are_taken_along() -> None:
    names = [*SMALL, "model.safetensors", "additional_chat_templates/tool_use.jinja", "docs/other.json"]
    assert "additional_chat_templates/tool_use.jinja" in choose(names, "repo")
    assert "docs/other.json" not in choose(names, "repo")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([*SMALL, "pytorch_model.bin"], "only PyTorch .bin files; use a repository with safetensors"),
        (["model-Q4_K_M.gguf"], "only GGUF files"),
        ([*SMALL, "adapter_model.safetensors", "adapter_config.json"], "is an adapter"),
        ([*SMALL, "weights.safetensors"], "neither model.safetensors nor model.safetensors.index.json"),
        (SMALL, "holds no weights"),
        (["model.safetensors", "tokenizer.json"], "has no config.json"),
        (["model.safetensors", "config.json"], "has no tokeniser"),
    ],
)
def test_what_is_not_servable_says_why(names: list[str], told: str) -> None:
    with pytest.raises(NotServable, match=r"repo") as caught:
        choose(names, "repo")
    assert told in str(caught.value)


def test_quantised_models_are_refused_by_name() -> None:
    with pytest.raises(NotServable, match="quantised with gptq"):
        check_config({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "repo")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for name in SMALL:
        (tmp_path / name).write_text('{"model_type": "qwen3"}')
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(NotServable, match=r"lacks 1 of 2 shards \(model-00002-of-00002\.safetensors\)"):
        check_directory(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x")
    check_directory(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00\xff"])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    for name in [*SMALL, "model.safetensors"]:
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(NotServable, match=r"config\.json is not"):
        check_directory(tmp_path)
