"""The small operations between matrix products, in plain torch; and the choice of faster ones.

Arithmetic is in float32 and results are in the type of the input, also between a norm and the rotation behind it, as
transformers' modules do it.
"""

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import log
from worker.engine.cuda.page_cache import PageCache
from worker.engine.fast.description import Activation
from worker.engine.probe import LayerShape

_log = log.get(__name__)
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """Of a fused projection: heads of queries, of keys and as many of values, and their size."""

    heads: int
    kv_heads: int
    dim: int


class Operations(Protocol):
    """What a decoder needs between its matrix products. Norm weights are float32, to multiply with."""

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Root-mean-square norm of x [tokens, size]."""
        ...

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """residual += x, in place; and its norm."""
        ...

    def turn_and_store(
        self,
        qkv: Tensor,
        sizes: HeadSizes,
        norms: tuple[Tensor | None, Tensor | None],
        epsilon: float,
        angles: tuple[Tensor, Tensor],
        cache: PageCache,
        slots: Tensor,
    ) -> Tensor:
        """The queries [tokens, heads, dim] of qkv [tokens, (heads + 2 kv_heads) dim]; keys and values go to the cache.

        Queries and keys are normed per head where there are norms, then turned by the angles: cosine and sine, float32
        [tokens, half] each, for the first 2 x half numbers of a head.
        """
        ...

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """activation(first half) x second half, of gate_up [tokens, 2 x size]."""
        ...


class TorchOperations:
    """Each of them as several of torch's."""

    name = "torch"

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See Operations."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        return (wide * weight).to(x.dtype)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See Operations."""
        residual += x
        return self.norm(residual, weight, epsilon)

    def turn_and_store(
        self,
        qkv: Tensor,
        sizes: HeadSizes,
        norms: tuple[Tensor | None, Tensor | None],
        epsilon: float,
        angles: tuple[Tensor, Tensor],
        cache: PageCache,
        slots: Tensor,
    ) -> Tensor:
        """See Operations."""
        heads = qkv.view(len(qkv), -1, sizes.dim)
        query, key, value = torch.split(heads, [sizes.heads, sizes.kv_heads, sizes.kv_heads], dim=1)
        query, key = (
            _turn(part if weight is None else self.norm(part, weight, epsilon), angles)
            for part, weight in zip((query, key), norms, strict=True)
        )
        cache.write(slots, key, value)
        return query

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See Operations."""
        gate, up = gate_up.chunk(2, dim=-1)
        match activation:
            case "silu":
                return F.silu(gate) * up
            case "gelu":
                return F.gelu(gate) * up
            case "gelu_tanh":
                return F.gelu(gate, approximate="tanh") * up


def _turn(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = angles[0][:, None], angles[1][:, None]
    half = cosine.shape[-1]
    first, second, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1).to(x.dtype)


@functools.cache
def choose_operations(dtype: torch.dtype, device: torch.device, *, use_triton: bool = True) -> Operations:
    """Triton's kernels if they are there, allowed and right; else torch."""
    if not use_triton:
        return TorchOperations()
    if not importlib.util.find_spec("triton"):
        _log.warning("operations.chosen", kind="torch", reason="Triton is not installed")
        return TorchOperations()
    try:
        faster: Operations = importlib.import_module("worker.engine.cuda.triton_operations").TritonOperations()
        error = compare(faster, dtype, device)
        if not error <= _TOLERANCE[dtype]:
            raise ArithmeticError(f"their results are off by {error:.2%}")
    except Exception as failure:
        _log.warning("operations.left_out", kind="triton", reason=f"{type(failure).__name__}: {failure}"[:200])
        return TorchOperations()
    _log.info("operations.chosen", kind="triton", dtype=str(dtype))
    return faster


@torch.inference_mode()
def compare(operations: Operations, dtype: torch.dtype, device: torch.device) -> float:
    """The largest error of any of these operations against torch's, on small random numbers of awkward sizes."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, of)

    plain = TorchOperations()
    errors = []
    for tokens, size, heads, kv_heads, dim, half in ((3, 72, 6, 2, 24, 12), (9, 128, 4, 4, 32, 8)):
        x, weight = random(tokens, size), random(size, of=torch.float32)
        errors.append(_error(operations.norm(x, weight, 1e-5), plain.norm(x, weight, 1e-5)))
        residual = random(tokens, size)
        ours, theirs = residual.clone(), residual.clone()
        errors.append(_error(operations.add_norm(x, ours, weight, 1e-5), plain.add_norm(x, theirs, weight, 1e-5)))
        errors.append(_error(ours, theirs))
        activations: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")
        errors += [_error(operations.gate(x, each), plain.gate(x, each)) for each in activations]
        sizes = HeadSizes(heads, kv_heads, dim)
        qkv = random(tokens, (heads + 2 * kv_heads) * dim)
        angle = random(tokens, half, of=torch.float32)
        slots = torch.randperm(20, generator=generator)[:tokens].to(device, torch.int32)
        head_norm = random(dim, of=torch.float32)
        for norms in ((None, None), (head_norm, head_norm + 1)):
            caches = [PageCache(LayerShape(kv_heads, dim, dim, device, None), 5, 4, dtype) for _ in range(2)]
            queries = [
                each.turn_and_store(qkv, sizes, norms, 1e-5, (angle.cos(), angle.sin()), cache, slots)
                for each, cache in zip((operations, plain), caches, strict=True)
            ]
            errors.append(_error(*queries))
            errors.append(_error(caches[0].keys, caches[1].keys))
            errors.append(_error(caches[0].values, caches[1].values))
    return max(errors)


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-9))
