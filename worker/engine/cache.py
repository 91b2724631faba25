"""The paged KV cache: one tensor of keys and one of values per layer, allocated once."""

import contextlib
import math
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from worker.engine.plan import Transfer
from worker.engine.probe import LayerShape


class LayerCache:
    """Keys and values of one layer, [1, kv_heads, slots, dim]; a slot holds one token.

    Block b is slots [b x block_tokens, (b + 1) x block_tokens). Heads come before slots, so that consecutive blocks
    are one contiguous matrix per head, which CPU kernels read a fifth to a third faster than the other order.

    Args:
        is_window: its slots are those of the sequences' window tables.
        num_host_slots: of a second tier in host memory, pinned where the layer is on another device.
    """

    def __init__(
        self,
        shape: LayerShape,
        num_slots: int,
        dtype: torch.dtype,
        *,
        is_window: bool = False,
        num_host_slots: int = 0,
    ) -> None:
        self.kv_heads = shape.kv_heads
        self.is_window = is_window
        sizes = [(1, shape.kv_heads, num_slots, dim) for dim in (shape.key_dim, shape.value_dim)]
        self.keys, self.values = (_zeros(size, dtype, shape.device) for size in sizes)
        self._host: tuple[Tensor, ...] = ()
        if num_host_slots:
            pin = shape.device.type != "cpu"
            sizes = [(1, shape.kv_heads, num_host_slots, dim) for dim in (shape.key_dim, shape.value_dim)]
            self._host = tuple(torch.empty(size, dtype=dtype, pin_memory=pin) for size in sizes)

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value, [1, kv_heads, tokens, dim], in the given slots."""
        self.keys.index_copy_(2, slots, key.to(self.keys.dtype))
        self.values.index_copy_(2, slots, value.to(self.values.dtype))

    def move(self, transfer: Transfer, block_tokens: int) -> None:
        """Carry out a transfer that is of this layer's kind."""
        device = self.keys, self.values
        sources = self._host if transfer.kind == "load" else device
        targets = self._host if transfer.kind == "spill" else device
        for source, target in zip(sources, targets, strict=True):
            block = source.narrow(2, transfer.source * block_tokens, block_tokens)
            # Copies from and to the device are in the order of its stream, and those from it are read back only so.
            target.narrow(2, transfer.target * block_tokens, block_tokens).copy_(block, non_blocking=True)


def _zeros(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU their memory is taken as it is first written: to touch gigabytes would double a load's time."""
    num_bytes = math.prod(size) * dtype.itemsize
    if device.type != "cpu" or not num_bytes or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(size, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*size)


def move_blocks(layers: Iterable[LayerCache], transfers: Sequence[Transfer], block_tokens: int) -> None:
    """Carry out transfers in all layers that they are meant for."""
    for layer in layers:
        for transfer in transfers:
            if transfer.is_window == layer.is_window:
                layer.move(transfer, block_tokens)


def block_bytes(layers: Iterable[LayerShape], block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block over these layers."""
    return sum(layer.values_per_token for layer in layers) * block_tokens * dtype.itemsize
