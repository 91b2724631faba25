# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
"""The small operations as Triton kernels: each reads its input once and writes its output once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.operations import HeadSizes
from worker.engine.cuda.page_cache import PageCache
from worker.engine.fast.description import Activation

_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_GATE_BLOCK = 1024


@triton.jit
def _norm(x, residual, weight, out, size, epsilon, BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    lane = tl.arange(0, BLOCK)
    is_in = lane < size
    values = tl.load(x + row + lane, mask=is_in, other=0.0)
    if HAS_RESIDUAL:
        sums = values.to(tl.float32) + tl.load(residual + row + lane, mask=is_in, other=0.0).to(tl.float32)
        values = sums.to(values.dtype)
        tl.store(residual + row + lane, values, mask=is_in)
    wide = values.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + epsilon)
    wide = wide * tl.load(weight + lane, mask=is_in, other=0.0)
    tl.store(out + row + lane, wide.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def _turn_and_store(
    qkv, query_norm, key_norm, cosine, sine, slots, query, keys, values, epsilon,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, HAS_QUERY_NORM: tl.constexpr, HAS_KEY_NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    is_in = lane < DIM
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    own = tl.load(source + lane, mask=is_in, other=0.0)
    if head < HEADS + KV_HEADS:
        # The number that each is turned against: of the same head, half of the turned part away.
        is_first = lane < HALF
        is_turned = lane < 2 * HALF
        other_lane = tl.where(is_first, lane + HALF, lane - HALF)
        other = tl.load(source + other_lane, mask=is_turned, other=0.0)
        wide = own.to(tl.float32)
        wide_other = other.to(tl.float32)
        if head < HEADS:
            if HAS_QUERY_NORM:
                factor = tl.rsqrt(tl.sum(wide * wide, 0) / DIM + epsilon)
                wide = wide * factor * tl.load(query_norm + lane, mask=is_in, other=0.0)
                wide_other = wide_other * factor * tl.load(query_norm + other_lane, mask=is_turned, other=0.0)
        else:
            if HAS_KEY_NORM:
                factor = tl.rsqrt(tl.sum(wide * wide, 0) / DIM + epsilon)
                wide = wide * factor * tl.load(key_norm + lane, mask=is_in, other=0.0)
                wide_other = wide_other * factor * tl.load(key_norm + other_lane, mask=is_turned, other=0.0)
        wide = wide.to(own.dtype).to(tl.float32)
        wide_other = wide_other.to(own.dtype).to(tl.float32)
        angle = tl.where(is_first, lane, lane - HALF)
        c = tl.load(cosine + token * HALF + angle, mask=is_turned, other=1.0)
        s = tl.load(sine + token * HALF + angle, mask=is_turned, other=0.0)
        turned = wide * c + wide_other * tl.where(is_first, -s, s)
        result = tl.where(is_turned, turned, wide)
        if head < HEADS:
            target = query + (token * HEADS + head) * DIM + lane
            tl.store(target, result.to(query.dtype.element_ty), mask=is_in)
        else:
            slot = tl.load(slots + token).to(tl.int64) * KV_HEADS + head - HEADS
            tl.store(keys + slot * DIM + lane, result.to(keys.dtype.element_ty), mask=is_in)
    else:
        slot = tl.load(slots + token).to(tl.int64) * KV_HEADS + head - HEADS - KV_HEADS
        tl.store(values + slot * DIM + lane, own.to(values.dtype.element_ty), mask=is_in)


@triton.jit
def _gate(gate_up, out, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = lane < size
    raw = tl.load(gate_up + token * 2 * size + lane, mask=is_in, other=0.0)
    up = tl.load(gate_up + token * 2 * size + size + lane, mask=is_in, other=0.0)
    gate = raw.to(tl.float32)
    if ACTIVATION == 0:
        gate = gate / (1 + tl.exp(-gate))
    elif ACTIVATION == 1:
        # 0.5 (1 + tanh y) = 1 / (1 + exp(-2 y))
        y = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate / (1 + tl.exp(-2 * y))
    else:
        gate = 0.5 * gate * (1 + tl.math.erf(gate * 0.7071067811865476))
    gate = gate.to(raw.dtype).to(tl.float32)
    tl.store(out + token * size + lane, (gate * up.to(tl.float32)).to(out.dtype.element_ty), mask=is_in)


@triton.jit
def _quantize(x, out, scales, size, limit, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    is_in = lane < size
    wide = tl.load(x + token * size + lane, mask=is_in, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide), 0) / limit, 1e-12)
    tl.store(scales + token, scale)
    tl.store(out + token * size + lane, (wide / scale).to(out.dtype.element_ty), mask=is_in)


class TritonOperations:
    """One kernel for each. See `worker.engine.cuda.operations.Operations`."""

    name = "triton"

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See Operations."""
        x = x.contiguous()
        out = torch.empty_like(x)
        size = x.shape[-1]
        block = triton.next_power_of_2(size)
        _norm[x.numel() // size,](
            x, x, weight, out, size, epsilon, BLOCK=block, HAS_RESIDUAL=False, num_warps=_warps(block)
        )
        return out

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See Operations."""
        out = torch.empty_like(x)
        size = x.shape[-1]
        block = triton.next_power_of_2(size)
        _norm[x.numel() // size,](
            x, residual, weight, out, size, epsilon, BLOCK=block, HAS_RESIDUAL=True, num_warps=_warps(block)
        )
        return out

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
        cosine, sine = (part.contiguous() for part in angles)
        query = qkv.new_empty(len(qkv), sizes.heads, sizes.dim)
        _turn_and_store[len(qkv), sizes.heads + 2 * sizes.kv_heads](
            qkv,
            cosine if norms[0] is None else norms[0],
            cosine if norms[1] is None else norms[1],
            cosine,
            sine,
            slots,
            query,
            cache.keys,
            cache.values,
            epsilon,
            HEADS=sizes.heads,
            KV_HEADS=sizes.kv_heads,
            DIM=sizes.dim,
            HALF=cosine.shape[-1],
            BLOCK=triton.next_power_of_2(sizes.dim),
            HAS_QUERY_NORM=norms[0] is not None,
            HAS_KEY_NORM=norms[1] is not None,
            num_warps=1,
        )
        return query

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See Operations."""
        size = gate_up.shape[-1] // 2
        out = gate_up.new_empty(len(gate_up), size)
        _gate[len(gate_up), triton.cdiv(size, _GATE_BLOCK)](
            gate_up, out, size, ACTIVATION=_ACTIVATIONS[activation], BLOCK=_GATE_BLOCK, num_warps=4
        )
        return out


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [tokens, size] in `dtype` with float32 scales [tokens, 1] by which to multiply it."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(x.shape[-1])
    limit = torch.finfo(dtype).max
    _quantize[len(x),](x, out, scales, x.shape[-1], limit, BLOCK=block, num_warps=_warps(block))
    return out, scales


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))
