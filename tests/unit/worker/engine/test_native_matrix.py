"""Packed products against plain ones, on shapes that fill no panel and no tile."""

import pytest
import torch

from worker.engine.native import library
from worker.engine.native.matrix import PackedMatrix

pytestmark = pytest.mark.skipif(library.find() is None, reason="there is no native library")
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-6, "int8": 0.01, "int4": 0.12}
ROWS = (1, 2, 3, 5, 6, 16, 101)


def make(kind: str, outputs: int, inputs: int) -> tuple[PackedMatrix, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    if kind == "bfloat16":
        weight = weight.bfloat16()
    return PackedMatrix(weight, bias, kind), weight.float(), bias


@pytest.mark.parametrize("kind", list(TOLERANCE))
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 32), (50, 64), (96, 160), (300, 1056)])
def test_products(kind, outputs, inputs):
    matrix, weight, bias = make(kind, outputs, inputs)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
        expected = x @ weight.T + bias
        error = (matrix.multiply(x) - expected).norm() / expected.norm()
        assert error < TOLERANCE[kind]


@pytest.mark.parametrize("kind", list(TOLERANCE))
def test_a_row_does_not_depend_on_what_it_is_batched_with(kind):
    matrix, _, _ = make(kind, 200, 1056)
    x = torch.randn(37, 1056, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([matrix.multiply(row[None]) for row in x])
    assert torch.equal(matrix.multiply(x), alone)


@pytest.mark.parametrize("kind", list(TOLERANCE))
def test_threads_change_nothing(kind):
    matrix, _, _ = make(kind, 300, 160)
    x = torch.randn(7, 160, generator=torch.Generator().manual_seed(1))
    one = matrix.multiply(x)
    try:
        torch.set_num_threads(3)
        assert torch.equal(matrix.multiply(x), one)
    finally:
        torch.set_num_threads(1)


def test_bfloat16_in_and_out():
    matrix, weight, bias = make("bfloat16", 50, 64)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = (x.float() @ weight.T + bias).bfloat16()
    assert torch.allclose(matrix.multiply(x).float(), expected.float(), atol=0.1, rtol=0.01)
    assert matrix.multiply(x).dtype == torch.bfloat16


def test_rows_come_back_as_they_were_packed():
    numbers = torch.tensor([0, 49, 7])
    for kind, bound in (("float32", 0.0), ("bfloat16", 0.0), ("int8", 0.02), ("int4", 0.5)):
        matrix, weight, _ = make(kind, 50, 64)
        assert (matrix.rows(numbers) - weight[numbers]).abs().max() <= bound


def test_zeros_and_infinities():
    matrix = PackedMatrix(torch.zeros(20, 64), None, "int8")
    assert torch.equal(matrix.multiply(torch.ones(2, 64)), torch.zeros(2, 20))
    matrix = PackedMatrix(torch.ones(20, 64), None, "int4")
    assert torch.equal(matrix.multiply(torch.zeros(1, 64)), torch.zeros(1, 20))
    x = torch.full((1, 64), torch.nan)
    assert PackedMatrix(torch.ones(20, 64), None, "bfloat16").multiply(x).isnan().all()


def test_sizes():
    weight = torch.randn(64, 256)
    assert PackedMatrix(weight.bfloat16(), None, "bfloat16").num_bytes == 64 * 256 * 2
    assert PackedMatrix(weight, None, "int8").num_bytes == 64 * 256 + 4 * 64
    assert PackedMatrix(weight, None, "int4").num_bytes == 64 * 256 * 9 // 16
