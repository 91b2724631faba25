"""How much memory an embedding model takes: its weights and one step, for there is no cache. Reads files, no torch."""

from pathlib import Path

from worker.models.plan import FIXED_BYTES, SCRATCH_BYTES, activation_bytes, resolve_dtype, stored_dtype, weights_bytes
from worker.models.pooling import embedding_context
from worker.models.shape import read_shape
from worker.models.weights import read_headers


def embedding_bytes(path: Path, *, dtype: str, device_kind: str, prefill_tokens: int, context_limit: int = 0) -> int:
    """Everything, in bytes. Raises NotServable.

    A step is either `prefill_tokens` of short inputs or one input as long as the context, padded and with its mask.
    """
    shape, tensors = read_shape(path), read_headers(path)
    dtype = resolve_dtype(dtype, shape.dtype or stored_dtype(tensors), device_kind)
    tokens = max(prefill_tokens, embedding_context(path, context_limit))
    step = activation_bytes(shape, dtype, prefill_tokens=tokens, slots=0)
    return weights_bytes(tensors, dtype) + step + SCRATCH_BYTES + FIXED_BYTES[device_kind]
