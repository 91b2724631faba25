"""Matrix products on a device: by cuBLAS in the weights' own type, or in fp8 with a scale for each row and column."""

import functools
import importlib
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import log
from worker.engine.linears import Linear, PlainLinear

_log = log.get(__name__)
FP8 = torch.float8_e4m3fn
_LIMIT = torch.finfo(FP8).max
_TOLERANCE = 0.05  # of rounding to 3 bits of mantissa
_ALIGNED = 16


class Fp8Linear:
    """Weights in fp8 with a scale per output; activations in fp8 with a scale per token, made as they come.

    Args:
        weight: [outputs, inputs], both multiples of 16.
        use_triton: activations are brought to fp8 by one kernel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, use_triton: bool = True) -> None:
        scales = (weight.abs().amax(1, keepdim=True).float() / _LIMIT).clamp_min(1e-12)
        self._weight = (weight / scales.to(weight.dtype)).float().clamp(-_LIMIT, _LIMIT).to(FP8)
        # Quantised with the scale as the weight's own type rounds it: the product is scaled with the same.
        self._scales = scales.to(weight.dtype).float().T.contiguous()
        self._bias = bias
        self._use_triton = use_triton and weight.device.type == "cuda"
        self.num_bytes = self._weight.nbytes + self._scales.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """x times the weight, plus the bias."""
        flat = x.reshape(-1, x.shape[-1])
        narrow, scales = quantize(flat, use_triton=self._use_triton)
        out = torch._scaled_mm(
            narrow,
            self._weight.T,
            scale_a=scales,
            scale_b=self._scales,
            out_dtype=torch.bfloat16,
            use_fast_accum=narrow.device.type == "cuda",
        ).to(x.dtype)
        if self._bias is not None:
            out = out + self._bias
        return out.view(*x.shape[:-1], -1)


def quantize(x: Tensor, *, use_triton: bool) -> tuple[Tensor, Tensor]:
    """x [tokens, size] in fp8, and float32 scales [tokens, 1] by which to multiply it."""
    if use_triton:
        made: tuple[Tensor, Tensor] = importlib.import_module("worker.engine.cuda.triton_operations").quantize_rows(
            x, FP8
        )
        return made
    wide = x.float()
    scales = (wide.abs().amax(1, keepdim=True) / _LIMIT).clamp_min(1e-12)
    return (wide / scales).to(FP8), scales


def make_linear(weight: Tensor, bias: Tensor | None, quantization: str, *, use_triton: bool = True) -> Linear:
    """The kind that was asked for, if it works on this device and fits the weight; else the plain one."""
    use_triton = use_triton and importlib.util.find_spec("triton") is not None
    if quantization and _works(quantization, weight.dtype, weight.device, use_triton):
        if weight.shape[0] % _ALIGNED or weight.shape[1] % _ALIGNED:
            _log.warning("linear.left_out", kind="fp8", reason=f"a weight of {tuple(weight.shape)} is not in sixteens")
        else:
            return Fp8Linear(weight, bias, use_triton=use_triton)
    return PlainLinear(weight, bias)


@functools.cache
def _works(quantization: str, dtype: torch.dtype, device: torch.device, use_triton: bool) -> bool:
    """Whether such a product gives what `F.linear` gives, for one token and for several."""
    if quantization != "fp8":
        _log.warning("linear.left_out", kind=quantization, reason="on this kind of device there is fp8 only")
        return False
    generator = torch.Generator().manual_seed(5)
    try:
        for outputs, tokens in ((48, 1), (96, 7)):
            weight, bias, x = (
                torch.randn(*size, generator=generator).to(device, dtype)
                for size in ((outputs, 64), (outputs,), (tokens, 64))
            )
            expected = F.linear(x.float(), weight.float(), bias.float())
            found = Fp8Linear(weight, bias, use_triton=use_triton)(x).float()
            error = float((found - expected).norm() / expected.norm())
            if not error <= _TOLERANCE:
                raise ArithmeticError(f"its results are off by {error:.2%}")
    except Exception as error:
        _log.warning("linear.left_out", kind="fp8", dtype=str(dtype), reason=f"{type(error).__name__}: {error}"[:200])
        return False
    return True
