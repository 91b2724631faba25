"""Faster modules put in place of a transformers model's own, on its general path."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.linears import LinearChoice, make_linear
from worker.engine.native import library
from worker.engine.vision.parts import modules_of

_DTYPES = (torch.float32, torch.bfloat16)


class FasterLinear(nn.Module):
    """A linear layer of the best kind."""

    def __init__(self, linear: nn.Linear, choice: LinearChoice) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._linear = make_linear(linear.weight.detach(), linear.bias, choice)
        self.num_bytes = self._linear.num_bytes

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]"""
        return self._linear(x)


class FasterNorm(nn.Module):
    """Root-mean-square norm in one pass."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self._library = library.load()
        self._weight = weight.contiguous()
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size], normed."""
        x = x.contiguous()
        out = torch.empty_like(x)
        size = x.shape[-1]
        self._library.plexus_rms_norm(
            x.data_ptr(),
            self._weight.data_ptr(),
            x.numel() // size,
            size,
            ctypes.c_float(self._epsilon),
            x.dtype == torch.bfloat16,
            out.data_ptr(),
        )
        return out


@torch.inference_mode()
def operate(model: nn.Module, choice: LinearChoice, replaced: Callable[[nn.Module], None]) -> int:
    """Replace what can be replaced, one module after the other; returns the bytes that replaced linear layers take.

    A replaced weight is let go at once unless something else holds it, as an embedding does that the head shares.
    `replaced` is called with each linear layer that was.
    """
    num_bytes = 0
    eyes = modules_of(model)  # these stay as they are: few tokens pass them, and quantised they would see less
    for parent in [module for module in model.modules() if module not in eyes]:
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                faster = FasterLinear(child, choice)
                num_bytes += faster.num_bytes
                setattr(parent, name, faster)
                replaced(child)
            elif choice.is_native and (norm := _faster_norm(child)):
                setattr(parent, name, norm)
    return num_bytes


def _faster_norm(module: nn.Module) -> FasterNorm | None:
    """The same norm, faster; found out by trial whether it multiplies with the weight or with one more."""
    part: Any = module
    epsilon = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float) or library.find() is None:
        return None
    weight = getattr(part, "weight", None)
    if (
        not isinstance(weight, Tensor)
        or weight.dim() != 1
        or weight.dtype not in _DTYPES
        or weight.device.type != "cpu"
    ):
        return None
    x = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(3)).to(weight.dtype)
    expected = module(x).float()
    tolerance = 1e-5 if weight.dtype == torch.float32 else 0.01
    for factor in (weight.detach().float(), weight.detach().float() + 1):
        faster = FasterNorm(factor, epsilon)
        if (faster(x).float() - expected).norm() <= tolerance * expected.norm():
            return faster
    return None
