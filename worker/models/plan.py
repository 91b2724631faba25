"""What of a granted amount of memory goes where, decided before a weight is read.

    granted = weights + activations + fixed + blocks of the KV cache

Everything but the cache is estimated from headers and config.json; the cache gets what is left, but not more than the
slots can fill. No torch here: the numbers serve an agent's ledger as well as a rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models.errors import DoesNotFit
from worker.models.shape import Shape, read_shape
from worker.models.weights import FLOATS, ITEM_BYTES, TORCH_NAMES, TensorHeader, read_headers

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOOR_TOKENS = 2048  # a cache below this (or the model's own limit) is not worth a replica
SCRATCH_BYTES = 64 << 20  # bound of what attention writes out at a time
# Interpreter, torch and transformers take 0.33 GB resident on a CPU, the rest is room for allocator and kernels.
# CUDA: context, cuBLAS workspaces and graphs, an estimate until measured on the device.
FIXED_BYTES = {"cpu": 512 << 20, "cuda": 1536 << 20}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes in bytes. `context_limit` is what one sequence may hold, prompt and completion together."""

    dtype: str
    weights_bytes: int
    activation_bytes: int
    fixed_bytes: int
    block_bytes: int
    block_tokens: int
    num_blocks: int
    context_limit: int
    context_wanted: int  # what it would be if memory did not matter

    @property
    def cache_bytes(self) -> int:
        """The whole KV cache."""
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return self.weights_bytes + self.activation_bytes + self.fixed_bytes + self.cache_bytes


def resolve_dtype(wanted: str, stored: str, device_kind: str) -> str:
    """The dtype to compute in. `auto` keeps the checkpoint's, except that a CPU is slow in float16: float32 there."""
    dtype = stored if wanted == "auto" else wanted
    if dtype not in DTYPE_BYTES:
        dtype = "float32" if device_kind == "cpu" else "bfloat16"
    return "float32" if dtype == "float16" and device_kind == "cpu" and wanted == "auto" else dtype


def stored_dtype(tensors: list[TensorHeader]) -> str:
    """The dtype that holds most of the weights, as torch names it; "" if none is a float."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.stored_bytes
    return TORCH_NAMES[max(sizes, key=lambda name: sizes[name])] if sizes else ""


def weights_bytes(tensors: list[TensorHeader], dtype: str) -> int:
    """Memory of these tensors with every float in `dtype`."""
    return sum(
        tensor.num_items * (DTYPE_BYTES[dtype] if tensor.dtype in FLOATS else ITEM_BYTES.get(tensor.dtype, 1))
        for tensor in tensors
    )


def activation_bytes(shape: Shape, dtype: str, *, prefill_tokens: int, slots: int) -> int:
    """Peak of one step: the widest layer over a full chunk, and three float32 copies of the logits of every row."""
    rows = prefill_tokens + slots
    width = 6 * shape.hidden + 3 * shape.ffn + 2 * shape.heads * shape.head_dim + shape.kv_items
    return rows * width * DTYPE_BYTES[dtype] + slots * shape.vocab * 4 * 3


def plan(
    path: Path,
    *,
    dtype: str,
    device_kind: str,
    memory_bytes: int,
    block_tokens: int,
    slots: int,
    prefill_tokens: int,
    context_limit: int = 0,
    config: Mapping[str, Any] | None = None,
) -> MemoryPlan:
    """Plan the model in `path` within `memory_bytes`. Raises DoesNotFit, with the numbers, or NotServable.

    `context_limit` lowers the model's own (0: the model's); `config` completes config.json, see `read_shape`.
    """
    shape, tensors = read_shape(path, config), read_headers(path)
    dtype = resolve_dtype(dtype, shape.dtype or stored_dtype(tensors), device_kind)
    weights = weights_bytes(tensors, dtype)
    step = activation_bytes(shape, dtype, prefill_tokens=prefill_tokens, slots=slots)
    # While loading, one tensor exists twice (converted or packed); a step never coincides with that.
    largest = max((tensor.num_items * DTYPE_BYTES[dtype] for tensor in tensors), default=0)
    return fit(
        dtype=dtype,
        weights=weights,
        activation=max(step + SCRATCH_BYTES, largest),
        fixed=FIXED_BYTES[device_kind],
        block_bytes=shape.layers * shape.kv_items * DTYPE_BYTES[dtype] * block_tokens,
        block_tokens=block_tokens,
        memory_bytes=memory_bytes,
        slots=slots,
        context_limit=min(context_limit or shape.context_limit, shape.context_limit),
    )


def fit(
    *,
    dtype: str,
    weights: int,
    activation: int,
    fixed: int,
    block_bytes: int,
    block_tokens: int,
    memory_bytes: int,
    slots: int,
    context_limit: int,
) -> MemoryPlan:
    """Divide the grant. Raises DoesNotFit if what is left holds no useful context."""
    floor_tokens = min(FLOOR_TOKENS, context_limit)
    floor_blocks = -(-floor_tokens // block_tokens)
    useful_blocks = slots * -(-context_limit // block_tokens)
    left = memory_bytes - weights - activation - fixed
    blocks = min(left // block_bytes, useful_blocks)
    if blocks < floor_blocks:
        cache = floor_blocks * block_bytes
        parts = {"weights": weights, "activations": activation, "fixed": fixed, "cache": cache}
        raise DoesNotFit(sum(parts.values()), memory_bytes, parts, floor_tokens)
    return MemoryPlan(
        dtype=dtype,
        weights_bytes=weights,
        activation_bytes=activation,
        fixed_bytes=fixed,
        block_bytes=block_bytes,
        block_tokens=block_tokens,
        num_blocks=blocks,
        context_limit=min(context_limit, blocks * block_tokens),
        context_wanted=context_limit,
    )
