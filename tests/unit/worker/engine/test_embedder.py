"""Vectors of real architectures with random weights, against transformers, one text at a time and without padding."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel

from tests.support import embedders
from worker.engine.embedder import Embedder, load_embedder
from worker.models.errors import NotServable
from worker.models.pooling import read_pooling

LENGTHS = (1, 2, 3, 7, 8, 31, 32)


def loaded(path: Path) -> Embedder:
    return load_embedder(path, read_pooling(path), device="cpu", dtype="float32")


def numbers(vector: bytes) -> torch.Tensor:
    return torch.tensor(struct.unpack(f"<{len(vector) // 4}f", vector))


@torch.inference_mode()
def reference(path: Path, ids: list[int], pooling: str) -> torch.Tensor:
    hidden = AutoModel.from_pretrained(path)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = {
        "mean_tokens": hidden.mean(0),
        "max_tokens": hidden.max(0).values,
        "cls_token": hidden[0],
        "lasttoken": hidden[-1],
    }[pooling]
    if (path / "2_Dense").is_dir():
        dense = load_file(path / "2_Dense" / "model.safetensors")
        pooled = torch.tanh(dense["linear.weight"] @ pooled + dense["linear.bias"])
    return pooled / pooled.norm()


def prompts(path: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids[:60] for text in embedders.SENTENCES]
    torch.manual_seed(0)
    return [*texts, *(torch.randint(5, 150, (length,)).tolist() for length in LENGTHS)]


@pytest.mark.parametrize(
    ("make", "pooling", "dense"),
    [
        ("bert", "mean_tokens", 0),
        ("bert", "cls_token", 0),
        ("bert", "max_tokens", 0),
        ("bert", "mean_tokens", 12),
        ("qwen3", "lasttoken", 0),
        ("qwen3", "mean_tokens", 0),
    ],
)
def test_vectors_are_those_of_transformers(tmp_path: Path, make: str, pooling: str, dense: int) -> None:
    path = tmp_path / "model"
    if make == "bert":
        embedders.make_bert(path, pooling, dense=dense)
    else:
        embedders.make_qwen3(path, pooling)
    inputs = prompts(path)
    vectors = loaded(path).embed(inputs)  # all in one batch, padded to the longest
    for ids, vector in zip(inputs, vectors, strict=True):
        torch.testing.assert_close(numbers(vector), reference(path, ids, pooling), rtol=1e-4, atol=2e-6)


def test_company_in_a_batch_does_not_matter(tmp_path: Path) -> None:
    embedder = loaded(embedders.make_bert(tmp_path / "model"))
    (alone,) = embedder.embed([[2, 9, 3]])
    among = embedder.embed([[2, 8, 7, 6, 5, 3], [2, 9, 3], [2, 3]])[1]
    torch.testing.assert_close(numbers(alone), numbers(among), rtol=1e-5, atol=1e-6)


def test_without_normalisation_lengths_are_kept(tmp_path: Path) -> None:
    embedder = loaded(embedders.make_bert(tmp_path / "model", normalize=False))
    assert numbers(embedder.embed([[2, 9, 3]])[0]).norm() != pytest.approx(1.0, abs=0.01)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = embedders.make_bert(tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotServable, match="lacks 1 weights"):
        loaded(path)
