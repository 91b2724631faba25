"""Triton's kernels against plain torch: in the interpreter here, on the device where there is one."""

from dataclasses import replace

import pytest
import torch

from worker.engine.cuda import attention, choosing, operations
from worker.engine.cuda.linears import quantize

pytest.importorskip("triton", reason="triton is not installed; it comes with torch for CUDA, or by itself")

from worker.engine.cuda import triton_attention, triton_operations, triton_sampler

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_small_operations(dtype, device):
    error = operations.compare(triton_operations.TritonOperations(), dtype, device)
    assert error <= {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


def test_small_operations_are_chosen_when_they_are_right(device):
    assert operations.choose_operations(torch.float32, device).name == "triton"
    assert operations.choose_operations(torch.float32, device, use_triton=False).name == "torch"


@pytest.fixture
def kind(device):
    return attention.Kind(8, 2, 32, 32, None, False, False, True, 16, torch.float32, device)


VARIANTS = {
    "decode": {},
    "chunks": {"is_single": False},
    "window": {"window": 7},
    "window-chunks": {"window": 7, "is_single": False},
    "softcap": {"has_softcap": True, "is_single": False},
    "sinks": {"has_sinks": True},
    "all": {"has_sinks": True, "has_softcap": True, "is_single": False, "window": 9},
    "awkward-heads": {"key_dim": 40, "value_dim": 24, "is_single": False},
    "three-heads-a-key": {"heads": 6},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16, "is_single": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "split"])
def test_attention(variant, is_split, kind, monkeypatch):
    monkeypatch.setattr(triton_attention, "_SPLIT_KEYS", 4 if is_split else 1 << 30)
    assert attention._try("triton", replace(kind, **VARIANTS[variant])) is None


@pytest.mark.parametrize(("vocab_size", "block", "blocks"), [(50, 32, 2), (131, 64, 1)])
def test_sampler(vocab_size, block, blocks, device, monkeypatch):
    """Vocabularies within one program, and over several with a last one that is not full."""
    monkeypatch.setattr(triton_sampler, "_BLOCK", block)
    monkeypatch.setattr(triton_sampler, "_BLOCKS", blocks)
    assert choosing.agrees(triton_sampler.TritonChoose(), device, vocab_size)


def test_sampler_with_what_is_no_number(device, monkeypatch):
    monkeypatch.setattr(triton_sampler, "_BLOCK", 32)
    monkeypatch.setattr(triton_sampler, "_BLOCKS", 1)
    logits = torch.randn(4, 70, device=device)
    logits[0, 40] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3:] = -torch.inf
    logits[2, :3] = 2.0
    settings = torch.zeros(choosing.NUM_SETTINGS, 4, dtype=torch.float64, device=device)
    chosen = triton_sampler.TritonChoose()(logits, settings, is_random=False).tolist()
    assert chosen == [choosing.NOT_FINITE, choosing.NOT_FINITE, 0, int(logits[3].argmax())]


def test_rows_in_fp8(device):
    x = torch.randn(3, 72, generator=torch.Generator().manual_seed(1)).to(device)
    narrow, scales = triton_operations.quantize_rows(x, torch.float8_e4m3fn)
    expected, expected_scales = quantize(x, use_triton=False)
    torch.testing.assert_close(scales, expected_scales)
    # The interpreter loses the carry where rounding reaches the next power of two; a device has no such numbers.
    num_other = int((narrow.float() != expected.float()).sum())
    assert num_other <= (4 if device.type == "cpu" else 1)
