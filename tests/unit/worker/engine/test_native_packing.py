"""What packing writes, against the layouts as they are described, number by number."""

import ctypes

import pytest
import torch

from worker.engine.native import library
from worker.engine.native.matrix import PackedMatrix

pytestmark = pytest.mark.skipif(library.find() is None, reason="there is no native library")
SHAPES = [(5, 32), (50, 96), (90, 288), (33, 1056)]


def weights(outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """With zeros, negative zeros and numbers that lie between two whole ones."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs)) * 0.05
    weight[0, ::3], weight[0, 1::3] = 0.0, -0.0
    weight[1] = (weight[1] * 20).round() / 20
    weight[2, :32] = torch.tensor([0.25, -0.25]).repeat(16)
    return weight.to(dtype)


def content(matrix: PackedMatrix) -> bytes:
    return ctypes.string_at(matrix.struct.data, matrix._data.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_plain_numbers_come_back(outputs, inputs, dtype):
    weight = weights(outputs, inputs, dtype)
    for kind in ("float32", "bfloat16"):
        rows = PackedMatrix(weight, None, kind).rows(torch.arange(outputs))
        expected = weight.float() if kind == "float32" else weight.bfloat16().float()
        assert torch.equal(rows, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_int8_is_the_nearest_of_its_steps(outputs, inputs, dtype):
    weight = weights(outputs, inputs, dtype).float()
    rows = PackedMatrix(weights(outputs, inputs, dtype), None, "int8").rows(torch.arange(outputs))
    scales = weight.abs().amax(1, keepdim=True) / 127
    assert torch.equal(rows, (weight * (1 / scales)).round() * scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_int4_is_the_nearest_of_its_steps(outputs, inputs, dtype):
    weight = weights(outputs, inputs, dtype).float()
    rows = PackedMatrix(weights(outputs, inputs, dtype), None, "int4").rows(torch.arange(outputs))
    groups = weight.view(outputs, -1, 32)
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (farthest / -8).bfloat16().float()
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    expected = (groups * inverse).round().clamp(-8, 7) * scales
    assert torch.equal(rows, expected.view(outputs, inputs))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_parts_are_stacked(kind):
    weight = weights(90, 96, torch.bfloat16)
    whole = PackedMatrix(weight, None, kind)
    parts = PackedMatrix([weight[:7], weight[7:7], weight[7:40], weight[40:]], None, kind)
    assert content(parts) == content(whole)
    if kind == "int8":
        assert torch.equal(parts._scales, whole._scales)


def test_rows_need_not_be_aligned():
    weight = weights(50, 96, torch.bfloat16)
    shifted = torch.empty(weight.numel() + 1, dtype=torch.bfloat16)[1:].view(50, 96).copy_(weight)
    for kind in ("bfloat16", "int8", "int4"):
        assert content(PackedMatrix(shifted, None, kind)) == content(PackedMatrix(weight, None, kind))
