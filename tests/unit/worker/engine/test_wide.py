"""Products of bfloat16 computed in float32."""

import pytest
import torch
import torch.nn.functional as F

from worker.engine import wide
from worker.engine.wide import WideProducts


@pytest.mark.parametrize("outputs", [3, 64, 257])
@pytest.mark.parametrize("has_bias", [False, True])
def test_results_are_those_of_exact_sums_rounded_once(outputs, has_bias, monkeypatch):
    monkeypatch.setattr(wide, "_PART_ITEMS", 1000)
    generator = torch.Generator().manual_seed(outputs)
    x, weight, bias = (
        torch.randn(*size, generator=generator).bfloat16() for size in ((2, 5, 48), (outputs, 48), (outputs,))
    )
    mode = WideProducts()
    mode._is_wanted = True
    with mode:
        found = F.linear(x, weight, bias if has_bias else None)
    expected = F.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    assert found.dtype == torch.bfloat16 and found.shape == (2, 5, outputs)
    assert torch.allclose(found.double(), expected, rtol=2**-8, atol=1e-4)


def test_other_types_are_left_alone():
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    expected = F.linear(x, weight)
    with WideProducts():
        assert torch.equal(F.linear(x, weight), expected)
