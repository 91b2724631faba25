"""Tensors read from where they lie."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.models import stored
from worker.models.errors import BadWeights, NotServable
from worker.models.weights import TensorHeader, read_headers

TENSORS = {
    "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "b": torch.tensor(3.5),
    "c": torch.arange(100_000, dtype=torch.float32),
    "d": torch.zeros(0, 4),
    "e": torch.tensor([True, False]),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_every_tensor_is_what_was_saved(model: Path) -> None:
    with stored.opened(read_headers(model)) as tensors, ThreadPoolExecutor(4) as pool:
        found = dict(zip(tensors, pool.map(lambda one: one[...], tensors.values()), strict=True))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_it_owns_its_memory(model: Path) -> None:
    with stored.opened(read_headers(model)) as tensors:
        found = tensors["a"][...]
    (model / "model.safetensors").write_bytes(bytes(8))
    assert torch.equal(found, TENSORS["a"])


def test_progress_counts_bytes_to_the_last(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_READ_BYTES", 1 << 16)
    told: list[tuple[int, int]] = []
    with stored.opened(read_headers(model), lambda done, total: told.append((done, total))) as tensors:
        for tensor in tensors.values():
            assert tensor[...] is not None
    total = sum(tensor.nbytes for tensor in TENSORS.values())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) > len(TENSORS)  # a large one is told of in between


def test_a_file_that_became_shorter_is_an_error(model: Path) -> None:
    headers = read_headers(model)
    file = model / "model.safetensors"
    with stored.opened(headers) as tensors:
        file.write_bytes(file.read_bytes()[:-100_000])
        with pytest.raises(BadWeights, match="c is cut short"):
            for tensor in tensors.values():
                assert tensor[...] is not None


def test_a_size_that_contradicts_the_shape_is_an_error(model: Path) -> None:
    headers = [header._replace(shape=(7,)) if header.name == "a" else header for header in read_headers(model)]
    with pytest.raises(BadWeights, match="a has another size"), stored.opened(headers):
        pass


def test_a_number_that_torch_does_not_have_is_refused(tmp_path: Path) -> None:
    header = TensorHeader("x", "F4", (2,), 1, tmp_path / "x.safetensors", 8)
    with pytest.raises(NotServable, match="F4"), stored.opened([header]):
        pass
