"""The paged KV cache: one tensor of keys and one of values per layer, allocated once."""

from collections.abc import Iterable

import torch
from torch import Tensor

from worker.engine.probe import LayerShape


class LayerCache:
    """Keys and values of one layer, [1, kv_heads, slots, dim]; a slot holds one token.

    Block b is slots [b x block_tokens, (b + 1) x block_tokens). Heads come before slots, so that consecutive blocks
    are one contiguous matrix per head, which CPU kernels read a fifth to a third faster than the other order.
    """

    def __init__(self, shape: LayerShape, num_slots: int, dtype: torch.dtype) -> None:
        self.kv_heads = shape.kv_heads
        self.keys = torch.zeros(1, shape.kv_heads, num_slots, shape.key_dim, dtype=dtype, device=shape.device)
        self.values = torch.zeros(1, shape.kv_heads, num_slots, shape.value_dim, dtype=dtype, device=shape.device)

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value, [1, kv_heads, tokens, dim], in the given slots."""
        self.keys.index_copy_(2, slots, key.to(self.keys.dtype))
        self.values.index_copy_(2, slots, value.to(self.values.dtype))


def block_bytes(layers: Iterable[LayerShape], block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return sum(layer.values_per_token for layer in layers) * block_tokens * dtype.itemsize
