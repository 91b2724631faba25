"""fp8 products, which torch also computes on CPUs, and what happens where there are none."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.models import make_model
from worker.engine.cuda import linears
from worker.engine.cuda.linears import Fp8Linear, make_linear
from worker.engine.cuda.options import CudaChoice
from worker.engine.cuda.prepare import prepare
from worker.engine.linears import PlainLinear


@pytest.fixture(autouse=True)
def _fresh():
    linears._works.cache_clear()
    yield
    linears._works.cache_clear()


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_close_to_the_plain_product(tokens, dtype):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(64, 96 + 32, generator=generator).to(dtype) * torch.logspace(-3, 1, 64)[:, None].to(dtype)
    bias, x = torch.randn(64, generator=generator).to(dtype), torch.randn(tokens, 128, generator=generator).to(dtype)
    linear = make_linear(weight, bias, "fp8")
    assert isinstance(linear, Fp8Linear)
    expected = F.linear(x, weight, bias).float()
    found = linear(x)
    assert found.dtype == dtype
    assert ((found.float() - expected).norm() / expected.norm()) < 0.05
    assert linear.num_bytes < weight.nbytes


def test_where_it_is_off_or_missing_the_weights_stay(monkeypatch):
    weight = torch.randn(32, 32)
    monkeypatch.setattr(torch, "_scaled_mm", lambda *arguments, **options: torch.zeros(arguments[0].shape[0], 48))
    assert isinstance(make_linear(weight, None, "fp8"), PlainLinear)


def test_other_kinds_and_odd_sizes_stay_plain():
    assert isinstance(make_linear(torch.randn(32, 32), None, "int8"), PlainLinear)
    assert isinstance(make_linear(torch.randn(32, 24), None, "fp8"), PlainLinear)


@pytest.mark.parametrize("path", ["fast", "generic"])
def test_a_whole_model_in_fp8_passes_its_test(path):
    choice = CudaChoice(path=path, attention=("gather",), has_triton=False, quantization="fp8")
    model = make_model("qwen3").bfloat16()
    plain = prepare(model, torch.bfloat16, replace(choice, quantization=""), consume=False)
    prepared = prepare(model, torch.bfloat16, choice, consume=False)
    assert prepared.path == f"{path} cuda"
    assert prepared.weights_bytes < plain.weights_bytes
