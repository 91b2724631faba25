"""The kinds of linear layers, behind one interface.

| kind | weights | where |
|---|---|---|
| plain | as they are | anywhere |
| onednn | bfloat16 in oneDNN's layout | CPUs with bfloat16 instructions |
| native | any of `native.matrix`, in its layout | CPUs with a compiler |
| dynamic int8 | int8 per output, activations quantised as they come | CPUs, by torch's own kernels |

Several rest on functions of torch that are private or on their way out. Each kind is therefore tried once on small
random weights, and one that gives something else than `F.linear` is left out, with a log line.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import log
from worker.engine.native import library
from worker.engine.native.matrix import Kind, PackedMatrix, can_pack
from worker.models.mapped import settled

_log = log.get(__name__)


class Linear(Protocol):
    """A linear layer, [..., inputs] to [..., outputs]."""

    num_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """x times the weight, plus the bias."""
        ...


@dataclass(frozen=True, slots=True)
class LinearChoice:
    """Which kinds may be used.

    Args:
        quantization: "" keeps the weights' type; int8; int4.
        is_packed: weights may be brought into another layout.
        is_native: the native library may be used.
    """

    quantization: str = ""
    is_packed: bool = True
    is_native: bool = True


class PlainLinear:
    """`F.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self.num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """x times the weight, plus the bias."""
        return F.linear(x, self._weight, self._bias)


class NativeLinear:
    """The native library's product."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: Kind) -> None:
        self._matrix = PackedMatrix(weight, bias, kind)
        self.num_bytes = self._matrix.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """x times the weight, plus the bias."""
        return self._matrix.multiply(x)


class OneDnnLinear:
    """bfloat16 weights in the layout that oneDNN's products want."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self._bias = bias
        self.num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """x times the weight, plus the bias."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class DynamicInt8Linear:
    """int8 weights per output; activations quantised row by row, by torch's kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.float()
        scales = (weight.abs().amax(1) / 127).clamp_min(1e-12).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these functions are to move to another package
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._bias = None if bias is None else bias.float()
        # Without these instructions sums of two products are cut to 16 bits, so activations get 7 bits.
        self._reduces_range = not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        self.num_bytes = weight.numel() + 4 * len(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x times the weight, plus the bias."""
        # The kernels have one scale for all rows: so that each has its own, all are brought to one size.
        sizes = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12)
        out = torch.ops.quantized.linear_dynamic(x / sizes, self._packed, self._reduces_range) * sizes
        return (out if self._bias is None else out + self._bias).to(x.dtype)


def make_linear(weight: Tensor, bias: Tensor | None, choice: LinearChoice) -> Linear:
    """The best kind that the choice allows and that works here. The weight is not kept if it is packed."""
    for name in _candidates(weight, choice):
        if _works(name, weight.dtype):
            return _KINDS[name](weight.detach(), None if bias is None else bias.detach())
    return PlainLinear(settled(weight), bias)


def _candidates(weight: Tensor, choice: LinearChoice) -> list[str]:
    """Names of kinds, the best first."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return []
    inputs = weight.shape[1]
    native = choice.is_native and library.find() is not None
    names: list[str] = []
    if choice.quantization == "int4" and native and can_pack("int4", inputs):
        names.append("native int4")
    if choice.quantization in ("int8", "int4"):
        if native and can_pack("int8", inputs):
            names.append("native int8")
        names.append("dynamic int8")
    if not choice.is_packed:
        return names
    if weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        names.append("onednn")
    if native and weight.dtype == torch.bfloat16 and can_pack("bfloat16", inputs):
        names.append("native bfloat16")
    if native and weight.dtype == torch.float32:
        names.append("native float32")
    return names


def _native(kind: Kind) -> Callable[[Tensor, Tensor | None], Linear]:
    return lambda weight, bias: NativeLinear(weight, bias, kind)


_KINDS: dict[str, Callable[[Tensor, Tensor | None], Linear]] = {
    "onednn": OneDnnLinear,
    "native float32": _native("float32"),
    "native bfloat16": _native("bfloat16"),
    "native int8": _native("int8"),
    "native int4": _native("int4"),
    "dynamic int8": DynamicInt8Linear,
}
_TOLERANCE = {"native float32": 1e-5, "native int4": 0.2, "native int8": 0.03, "dynamic int8": 0.05}


@functools.cache
def _works(name: str, dtype: torch.dtype) -> bool:
    """Whether a kind gives what `F.linear` gives, on small random weights."""
    generator = torch.Generator().manual_seed(5)
    try:
        for outputs, rows in ((48, 1), (96, 7)):
            weight, bias, x = (
                torch.randn(*size, generator=generator).to(dtype) for size in ((outputs, 64), (outputs,), (rows, 64))
            )
            x *= 4.0 ** torch.arange(rows).to(dtype)[:, None]  # a small row beside large ones is as exact
            expected = F.linear(x.float(), weight.float(), bias.float())
            errors = (_KINDS[name](weight, bias)(x).float() - expected).norm(dim=1) / expected.norm(dim=1)
            if not bool((errors <= _TOLERANCE.get(name, 0.01)).all()):
                raise ArithmeticError(f"its results are off by {float(errors.max()):.2%}")
    except Exception as error:
        _log.warning("linear.left_out", kind=name, dtype=str(dtype), reason=f"{type(error).__name__}: {error}")
        return False
    return True
