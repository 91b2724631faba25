"""How much memory a replica is to get: what its weights need, and a cache of useful size. Reads files, no torch."""

from dataclasses import dataclass
from pathlib import Path

from shared.messages import Estimated
from shared.records import ModelRecord
from worker.models import plan as planning
from worker.models.draft import draft_path
from worker.models.embedding_plan import embedding_bytes
from worker.models.errors import CannotDivide

BLOCK_TOKENS = 32  # for rounding; the rank divides what it is granted by its own block size
CACHE_TOKENS_PER_SLOT = 2048  # what a job holds on average, generously
SYNTHETIC_BYTES = 256 << 20
MARGIN_BYTES = 64 << 20  # for what turns out larger than planned; the cache has it otherwise
PLENTY = 1 << 50  # more memory than any device has
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

    Of a replica over several devices it is what each of them has to give.

    The cache is not made as large as the device allows: others may want to live there. It holds one sequence of the
    model's whole context, or a usual one for every slot, unless the model's options say how many tokens.
    """
    if model.devices > 1 and model.backend == "synthetic":
        raise CannotDivide(path, model.devices, "it is synthetic, so there is nothing to divide")
    if model.devices > 1 and model.task == "embed":
        raise CannotDivide(path, model.devices, "embedding models are not divided")
    if model.backend == "synthetic":
        return Size(SYNTHETIC_BYTES, slots)
    if model.task == "embed":
        needed = embedding_bytes(
            path,
            dtype=model.dtype,
            device_kind=device_kind,
            prefill_tokens=prefill_tokens,
            context_limit=model.context_limit,
        )
        return Size(needed, slots)
    plan = planning.plan(
        path,
        dtype=model.dtype,
        quantization=model.quantization,
        device_kind=device_kind,
        memory_bytes=available_bytes,
        block_tokens=BLOCK_TOKENS,
        slots=slots,
        prefill_tokens=prefill_tokens,
        context_limit=model.context_limit,
        draft=draft_path(model.options, device_kind),
        options=model.options,
        devices=model.devices,
    )
    tokens = int(model.options.get(CACHE_TOKENS) or max(plan.context_limit, slots * CACHE_TOKENS_PER_SLOT))
    needed = plan.bytes_with(-(-tokens // BLOCK_TOKENS) + 1)
    return Size(min(available_bytes, needed + MARGIN_BYTES), slots)


def estimate(path: Path, model: ModelRecord, *, device_kind: str, slots: int, prefill_tokens: int) -> Estimated:
    """What the model takes, by its files, on a device with room. Raises ModelError for what is no model."""
    slots = slots_of(model, slots)
    wanted = size(
        path, model, device_kind=device_kind, available_bytes=PLENTY, slots=slots, prefill_tokens=prefill_tokens
    ).memory_bytes
    if model.backend == "synthetic" or model.task == "embed":
        return Estimated(minimum_bytes=wanted, wanted_bytes=wanted)
    plan = planning.plan(
        path,
        dtype=model.dtype,
        quantization=model.quantization,
        device_kind=device_kind,
        memory_bytes=PLENTY,
        block_tokens=BLOCK_TOKENS,
        slots=slots,
        prefill_tokens=prefill_tokens,
        context_limit=model.context_limit,
        draft=draft_path(model.options, device_kind),
        options=model.options,
        devices=model.devices,
    )
    floor_blocks = -(-min(planning.FLOOR_TOKENS, plan.context_wanted) // BLOCK_TOKENS)
    return Estimated(
        weights_bytes=plan.weights_bytes,
        kv_bytes_per_token=plan.block_bytes // BLOCK_TOKENS,
        activation_bytes=plan.activation_bytes,
        fixed_bytes=plan.fixed_bytes,
        minimum_bytes=plan.bytes_with(floor_blocks),
        wanted_bytes=wanted,
    )
