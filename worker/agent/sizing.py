"""How much memory a replica is to get: what its weights need, and a cache of useful size. Reads files, no torch."""

from dataclasses import dataclass
from pathlib import Path

from shared.records import ModelRecord
from worker.models import plan as planning

BLOCK_TOKENS = 32  # for rounding; the rank divides what it is granted by its own block size
CACHE_TOKENS_PER_SLOT = 2048  # what a job holds on average, generously
SYNTHETIC_BYTES = 256 << 20
CACHE_TOKENS = "cache_tokens"  # the model option that sets the size of the cache


@dataclass(frozen=True)
class Size:
    """What to reserve."""

    memory_bytes: int
    slots: int


def slots_of(model: ModelRecord, default: int) -> int:
    """Jobs that a replica of the model takes at once."""
    return model.max_slots or default


def size(
    path: Path, model: ModelRecord, *, device_kind: str, available_bytes: int, slots: int, prefill_tokens: int
) -> Size:
    """The size of a replica within `available_bytes`. Raises ModelError (DoesNotFit, with the numbers, among others).

    The cache is not made as large as the device allows: others may want to live there. It holds one sequence of the
    model's whole context, or a usual one for every slot, unless the model's options say how many tokens.
    """
    if model.backend == "synthetic":
        return Size(SYNTHETIC_BYTES, slots)
    plan = planning.plan(
        path,
        dtype=model.dtype,
        device_kind=device_kind,
        memory_bytes=available_bytes,
        block_tokens=BLOCK_TOKENS,
        slots=slots,
        prefill_tokens=prefill_tokens,
        context_limit=model.context_limit,
    )
    tokens = int(model.options.get(CACHE_TOKENS) or max(plan.context_limit, slots * CACHE_TOKENS_PER_SLOT))
    blocks = min(plan.num_blocks, -(-tokens // BLOCK_TOKENS) + 1)
    return Size(plan.total_bytes - (plan.num_blocks - blocks) * plan.block_bytes, slots)
