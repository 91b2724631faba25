"""A model divided between ranks: its parts are the model, nobody reads more, and what cannot be divided is refused."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.records import ModelRecord
from tests.support.models import make_model
from worker.agent.sizing import estimate, size
from worker.engine import attention
from worker.engine.fast import families
from worker.models import plan as planning
from worker.models.division import FAMILIES, Division
from worker.models.errors import CannotDivide
from worker.models.load import load
from worker.models.skeleton import write_headers

_LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def write_model(folder: Path, **changes: Any) -> Path:
    """A model of some size as far as plans read it: configuration and headers, in a sparse file."""
    config = _LLAMA | changes
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = config["num_key_value_heads"] * 128
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "lm_head.weight": [vocab, hidden]}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": [hidden, hidden],
            f"{layer}self_attn.k_proj.weight": [keys, hidden],
            f"{layer}self_attn.v_proj.weight": [keys, hidden],
            f"{layer}self_attn.o_proj.weight": [hidden, hidden],
            f"{layer}mlp.gate_proj.weight": [ffn, hidden],
            f"{layer}mlp.up_proj.weight": [ffn, hidden],
            f"{layer}mlp.down_proj.weight": [hidden, ffn],
            f"{layer}input_layernorm.weight": [hidden],
        }
    tensors, at = [], 0
    for name, shape in shapes.items():
        num_bytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append((name, "BF16", shape, [at, at + num_bytes]))
        at += num_bytes
    folder.mkdir(exist_ok=True)
    write_headers(folder / "model.safetensors", tensors, 0)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def planned(path: Path, devices: int, memory_bytes: int = 64 << 30) -> planning.MemoryPlan:
    return planning.plan(
        path,
        dtype="auto",
        device_kind="cuda",
        memory_bytes=memory_bytes,
        block_tokens=32,
        slots=8,
        prefill_tokens=512,
        devices=devices,
    )


def test_the_families_are_those_of_the_fast_path() -> None:
    assert set(FAMILIES) == set(families.FAMILIES)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_weights_and_cache_of_each_device_are_its_part(tmp_path: Path, devices: int) -> None:
    path = write_model(tmp_path)
    one, share = planned(path, 1), planned(path, devices)
    assert share.weights_bytes == pytest.approx(one.weights_bytes / devices, rel=0.001)
    assert share.block_bytes * devices == one.block_bytes
    assert share.activation_bytes < one.activation_bytes
    assert share.fixed_bytes == one.fixed_bytes  # of each process


def test_a_leader_promises_what_the_agent_asks_for(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    model = ModelRecord(id="m", source=str(path), devices=2)
    told = estimate(path, model, device_kind="cuda", slots=8, prefill_tokens=512)
    asked = size(path, model, device_kind="cuda", available_bytes=told.wanted_bytes, slots=8, prefill_tokens=512)
    assert asked.memory_bytes == told.wanted_bytes
    least = size(path, model, device_kind="cuda", available_bytes=told.minimum_bytes, slots=8, prefill_tokens=512)
    assert least.memory_bytes == told.minimum_bytes


@pytest.mark.parametrize(
    ("changes", "devices", "words"),
    [
        ({}, 3, "num_attention_heads 32, intermediate_size 14336, num_key_value_heads 8 cannot be shared out evenly"),
        ({"num_key_value_heads": 2}, 16, None),  # several have the same
        ({"num_key_value_heads": 12, "num_attention_heads": 48}, 16, "num_key_value_heads 12"),
        ({"model_type": "gpt_neox"}, 2, "models of type gpt_neox are not divided, only llama"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_numbers(
    tmp_path: Path, changes: dict[str, Any], devices: int, words: str | None
) -> None:
    path = write_model(tmp_path, **changes)
    if words is None:
        assert planned(path, devices).block_bytes * 2 == planned(path, 1).block_bytes
        return
    with pytest.raises(CannotDivide, match="set `devices` of its catalogue entry") as error:
        planned(path, devices)
    assert words in str(error.value)


def test_what_has_nothing_to_divide_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    for record in (
        ModelRecord(id="m", source=str(path), devices=2, backend="synthetic"),
        ModelRecord(id="m", source=str(path), devices=2, task="embed"),
        ModelRecord(id="m", source=str(path), devices=2, options={"draft": str(path)}),
    ):
        with pytest.raises(CannotDivide):
            size(path, record, device_kind="cpu", available_bytes=64 << 30, slots=8, prefill_tokens=512)


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How much was read of files."""
    total, preadv = 0, os.preadv

    def count(fd: int, buffers: Any, offset: int) -> int:
        nonlocal total
        done = preadv(fd, buffers, offset)
        total += done
        return done

    monkeypatch.setattr(os, "preadv", count)
    yield lambda: total


@pytest.mark.parametrize("leave", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe"])
def test_shares_put_together_are_the_model(
    tmp_path: Path, family: str, leave: bool, read_bytes: Callable[[], int]
) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path)

    def share(rank: int) -> dict[str, torch.Tensor]:
        division = Division.of(tmp_path, 2, rank)
        made = load(tmp_path, device="cpu", dtype="float32", attention=attention.NAME, leave=leave, division=division)
        return dict(made.named_parameters())

    first = share(0)
    if not leave:
        assert read_bytes() == sum(one.nbytes for one in first.values())
    second = share(1)
    for name, whole in model.named_parameters():
        parts = [first[name], second[name]]
        if parts[0].shape == whole.shape:
            assert torch.equal(parts[0], whole) and torch.equal(parts[1], whole)
            continue
        (dim,) = [dim for dim, length in enumerate(whole.shape) if parts[0].shape[dim] != length]
        for part in parts:
            assert part.shape[dim] * 2 == whole.shape[dim]
        assert torch.equal(_sorted(torch.cat(parts, dim), dim), _sorted(whole, dim)), name


def _sorted(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Rows along a dimension in an order of their own: those of fused matrices are interleaved."""
    return tensor.detach().movedim(dim, 0).reshape(tensor.shape[dim], -1).sort(0).values


def test_a_bias_that_would_be_added_twice_is_the_first_ranks(tmp_path: Path) -> None:
    model = make_model("llama", attention_bias=True, mlp_bias=True)
    model.save_pretrained(tmp_path)
    shares = [
        load(
            tmp_path,
            device="cpu",
            dtype="float32",
            attention=attention.NAME,
            division=Division.of(tmp_path, 2, rank),
        )
        for rank in (0, 1)
    ]
    name = "model.layers.0.mlp.down_proj.bias"
    first, second = (share.get_parameter(name) for share in shares)
    assert torch.equal(first, model.get_parameter(name))
    assert not second.any()
