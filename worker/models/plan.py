"""What of a granted amount of memory goes where, decided before a weight is read.

    granted = weights + activations + fixed + blocks of the KV cache

Everything but the cache is estimated from headers and config.json; the cache gets what is left, but not more than the
slots can fill. No torch here: the numbers serve an agent's ledger as well as a rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worker.models.cache_split import CacheNeeds, split
from worker.models.division import Division
from worker.models.draft import PASS_TOKENS
from worker.models.errors import CannotDivide, DoesNotFit
from worker.models.shape import Shape, read_shape
from worker.models.vision import is_of_tower, read_vision
from worker.models.weights import (
    FLOATS,
    ITEM_BYTES,
    TORCH_NAMES,
    TensorHeader,
    can_stay,
    is_expert,
    is_matrix,
    read_headers,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED_BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 0.625}  # of a number; int4 with scale and offset for 32 to 64
MAX_DRAFTS = 64  # tokens that a step guesses ahead, of all rows together: each has logits of its own
FLOOR_TOKENS = 2048  # a cache below this (or the model's own limit) is not worth a replica
SCRATCH_BYTES = 64 << 20  # bound of what attention writes out at a time
# Interpreter, torch and transformers take 0.33 GB resident on a CPU, the rest is room for allocator and kernels.
# CUDA: context, cuBLAS workspaces and graphs, an estimate until measured on the device.
FIXED_BYTES = {"cpu": 512 << 20, "cuda": 1536 << 20}
QUANTISED_EXPERTS = ("qwen3_moe", "mixtral")  # families whose experts are quantised; those of others stay as they are


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
    window: int = 0  # tokens that sliding layers keep; 0: they have blocks like all others
    window_block_bytes: int = 0  # of sliding layers, where these have blocks of their own
    num_window_blocks: int = 0
    tower_bytes: int = 0  # of `activation_bytes`, what the largest image takes while it is seen
    draft_bytes: int = 0  # of `weights_bytes`, those of a draft model
    loading_bytes: int = 0  # at the peak of the load, before there is a cache, where weights are quantised

    @property
    def cache_bytes(self) -> int:
        """The whole KV cache."""
        return self.num_blocks * self.block_bytes + self.num_window_blocks * self.window_block_bytes

    def bytes_with(self, num_blocks: int) -> int:
        """Everything, with no more than so many blocks of each kind."""
        blocks, window_blocks = min(self.num_blocks, num_blocks), min(self.num_window_blocks, num_blocks)
        cache = blocks * self.block_bytes + window_blocks * self.window_block_bytes
        return max(self.total_bytes - self.cache_bytes + cache, self.loading_bytes)

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


def weights_bytes(
    tensors: list[TensorHeader], dtype: str, quantization: str = "", *, keeps_experts: bool = False
) -> int:
    """Memory of these tensors with every float in `dtype`, and the matrices of layers quantised."""
    return sum(_tensor_bytes(tensor, dtype, _kind(tensor, quantization, keeps_experts)) for tensor in tensors)


def _kind(tensor: TensorHeader, quantization: str, keeps_experts: bool) -> str:
    """How a tensor is quantised."""
    return "" if (keeps_experts and is_expert(tensor)) or is_of_tower(tensor.name) else quantization


def loading_bytes(
    tensors: list[TensorHeader], dtype: str, quantization: str, device_kind: str, *, keeps_experts: bool = False
) -> int:
    """Their peak while they are loaded and quantised, beside what the process takes in any case.

    On a CPU matrices are quantised from their files, where they are of the type to compute in. The rest is there whole
    at first; and the largest one is there as it is stored, as it is computed with and packed.
    """
    largest = max((tensor.num_items * DTYPE_BYTES[dtype] for tensor in tensors), default=0)
    stays = [tensor for tensor in tensors if device_kind == "cpu" and can_stay(tensor, dtype)]
    names = {tensor.name for tensor in stays}
    whole = [tensor for tensor in tensors if tensor.name not in names]
    return (
        weights_bytes(stays, dtype, quantization, keeps_experts=keeps_experts)
        + weights_bytes(whole, dtype)
        + 2 * largest
    )


def _tensor_bytes(tensor: TensorHeader, dtype: str, quantization: str) -> int:
    if tensor.dtype not in FLOATS:
        return tensor.num_items * ITEM_BYTES.get(tensor.dtype, 1)
    if quantization and is_matrix(tensor):
        return int(tensor.num_items * QUANTISED_BYTES[quantization]) + tensor.shape[0] * 8
    return tensor.num_items * DTYPE_BYTES[dtype]


def activation_bytes(shape: Shape, dtype: str, *, prefill_tokens: int, slots: int) -> int:
    """Peak of one step: the widest layer over a full chunk, and thrice the float32 logits of all rows and drafts."""
    rows = prefill_tokens + slots
    width = 6 * shape.hidden + 3 * shape.ffn + 2 * shape.heads * shape.head_dim + shape.kv_items
    return rows * width * DTYPE_BYTES[dtype] + logits_bytes(shape.vocab, slots)


def logits_bytes(vocab: int, slots: int) -> int:
    """Of the rows of a step and their drafts, three times in float32."""
    return (slots + MAX_DRAFTS) * vocab * 4 * 3


def plan(
    path: Path,
    *,
    dtype: str,
    quantization: str = "",
    device_kind: str,
    memory_bytes: int,
    block_tokens: int,
    slots: int,
    prefill_tokens: int,
    context_limit: int = 0,
    config: Mapping[str, Any] | None = None,
    draft: Path | None = None,
    options: Mapping[str, Any] | None = None,
    devices: int = 1,
) -> MemoryPlan:
    """Plan the model in `path` within `memory_bytes`. Raises DoesNotFit, with the numbers, or NotServable.

    `context_limit` lowers the model's own (0: the model's); `config` completes config.json, see `read_shape`; `draft`
    is the directory of a draft model, which has a cache of as many blocks; `options` are the model's, as far as they
    bound its images. Over several `devices`, sizes are those of the first, which has most to hold; CannotDivide if the
    model is not divided over so many.
    """
    shape, tensors, eyes = read_shape(path, config), read_headers(path), read_vision(path, options, config)
    if devices > 1:
        division = Division.of(path, devices, config=config)
        if draft is not None:
            raise CannotDivide(path, devices, "it has a draft model, which would have to be divided as well")
        shape, tensors = division.shrink(shape), [division.share(tensor) for tensor in tensors]
    dtype = resolve_dtype(dtype, shape.dtype or stored_dtype(tensors), device_kind)
    keeps_experts = device_kind != "cpu" or shape.model_type not in QUANTISED_EXPERTS
    weights = weights_bytes(tensors, dtype, quantization, keeps_experts=keeps_experts)
    step = activation_bytes(shape, dtype, prefill_tokens=prefill_tokens, slots=slots)
    # While loading, one tensor exists twice (converted or packed); a step never coincides with that.
    largest = max((tensor.num_items * DTYPE_BYTES[dtype] for tensor in tensors), default=0)
    fixed, tower = FIXED_BYTES[device_kind], 0
    if eyes is not None:
        tower = eyes.activation_bytes(DTYPE_BYTES[dtype])
        fixed += eyes.feature_bytes(shape.hidden, DTYPE_BYTES[dtype], slots)
        fixed += eyes.pixel_bytes(slots) if device_kind == "cpu" else 0
    loading = 0
    if quantization:
        loading = fixed + loading_bytes(tensors, dtype, quantization, device_kind, keeps_experts=keeps_experts)
    second = _DraftNeeds()
    if draft is not None:
        second = _draft_needs(draft, dtype, quantization, device_kind, block_tokens=block_tokens, slots=slots)
        loading = max(loading, weights + second.loading_bytes + fixed) if quantization else 0
    if loading > memory_bytes:
        parts = {"weights while they are quantised": loading - fixed, "fixed": fixed}
        raise DoesNotFit(loading, memory_bytes, parts, 0)
    found = fit(
        dtype=dtype,
        weights=weights + second.weights_bytes,
        activation=max(step + SCRATCH_BYTES, largest, second.activation_bytes, tower),
        fixed=fixed,
        block_bytes=(shape.layers - shape.window_layers) * shape.kv_items * DTYPE_BYTES[dtype] * block_tokens
        + second.block_bytes,
        window_block_bytes=shape.window_layers * shape.kv_items * DTYPE_BYTES[dtype] * block_tokens,
        window=shape.window,
        block_tokens=block_tokens,
        memory_bytes=memory_bytes,
        slots=slots,
        prefill_tokens=prefill_tokens,
        context_limit=min(context_limit or shape.context_limit, shape.context_limit),
    )
    return replace(found, loading_bytes=loading, draft_bytes=second.weights_bytes, tower_bytes=tower)


@dataclass(frozen=True, slots=True)
class _DraftNeeds:
    """What a draft model takes; nothing where there is none."""

    weights_bytes: int = 0
    activation_bytes: int = 0
    block_bytes: int = 0
    loading_bytes: int = 0


def _draft_needs(
    draft: Path, dtype: str, quantization: str, device_kind: str, *, block_tokens: int, slots: int
) -> _DraftNeeds:
    """As of any other model, but that all its layers keep every token and a pass has few."""
    shape, tensors = read_shape(draft), read_headers(draft)
    keeps_experts = device_kind != "cpu" or shape.model_type not in QUANTISED_EXPERTS
    step = activation_bytes(shape, dtype, prefill_tokens=PASS_TOKENS, slots=slots)
    return _DraftNeeds(
        weights_bytes=weights_bytes(tensors, dtype, quantization, keeps_experts=keeps_experts),
        activation_bytes=step + SCRATCH_BYTES,
        block_bytes=shape.layers * shape.kv_items * DTYPE_BYTES[dtype] * block_tokens,
        loading_bytes=loading_bytes(tensors, dtype, quantization, device_kind, keeps_experts=keeps_experts),
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
    prefill_tokens: int = 0,
    window_block_bytes: int = 0,
    window: int = 0,
) -> MemoryPlan:
    """Divide the grant. Raises DoesNotFit if what is left holds no useful context.

    `block_bytes` are those of layers that keep every token, `window_block_bytes` those of layers that keep `window`.
    """
    floor_tokens = min(FLOOR_TOKENS, context_limit)
    floor_blocks = -(-floor_tokens // block_tokens)
    left = memory_bytes - weights - activation - fixed
    needs = CacheNeeds(
        block_bytes=block_bytes,
        window_block_bytes=window_block_bytes,
        window=window,
        block_tokens=block_tokens,
        slots=slots,
        step_tokens=max(prefill_tokens, slots + 1),
        context_limit=context_limit,
    )
    blocks, window_blocks = split(max(0, left), needs)
    if blocks < floor_blocks:
        cache = floor_blocks * (block_bytes + window_block_bytes)
        parts = {"weights": weights, "activations": activation, "fixed": fixed, "cache": cache}
        raise DoesNotFit(sum(parts.values()), memory_bytes, parts, floor_tokens)
    is_capped = window_blocks > 0
    return MemoryPlan(
        dtype=dtype,
        weights_bytes=weights,
        activation_bytes=activation,
        fixed_bytes=fixed,
        block_bytes=block_bytes if is_capped else block_bytes + window_block_bytes,
        block_tokens=block_tokens,
        num_blocks=blocks,
        context_limit=min(context_limit, blocks * block_tokens),
        context_wanted=context_limit,
        window=window if is_capped else 0,
        window_block_bytes=window_block_bytes if is_capped else 0,
        num_window_blocks=window_blocks,
    )
