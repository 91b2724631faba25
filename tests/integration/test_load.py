"""Loading gives what transformers' own loading gives, whatever the checkpoint looks like."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.tiny import make_checkpoint
from worker.models.load import load


def loaded(path: Path, dtype: str) -> tuple[nn.Module, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    model = load(
        path, device="cpu", dtype=dtype, attention="eager", progress=lambda done, total: told.append((done, total))
    )
    return model, told


def same(path: Path, dtype: str = "float32") -> nn.Module:
    """Load, compare every parameter and buffer, and look at the progress."""
    model, told = loaded(path, dtype)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    ours, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    for (name, mine), (_, other) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        assert mine.device.type == "cpu" and torch.equal(mine, other), name
    assert told[-1][0] == told[-1][1] > 0
    return model


@pytest.mark.parametrize("arch", ["qwen3_moe", "mixtral", "gpt_oss", "phi3"])
def test_experts_and_joined_weights(arch: str, tmp_path: Path) -> None:
    same(make_checkpoint(tmp_path, arch, shards=2))


@pytest.mark.parametrize(("stored", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_another_type_of_number(stored: str, wanted: str, tmp_path: Path) -> None:
    same(make_checkpoint(tmp_path, dtype=stored), wanted)


def test_tied_weights_are_one(tmp_path: Path) -> None:
    model = same(make_checkpoint(tmp_path, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_names_without_the_models_prefix(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = {name.removeprefix("model."): one for name, one in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    same(path)
