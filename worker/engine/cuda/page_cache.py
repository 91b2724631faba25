"""One layer's keys and values in pages, as FlashAttention wants them."""

import torch
from torch import Tensor

from worker.engine.plan import Transfer
from worker.engine.probe import LayerShape


class PageCache:
    """Keys and values of one layer, [pages, page_tokens, kv_heads, dim].

    A page is a block of the scheduler's, so block b is page b. One more page at the end is nobody's: rows that only
    fill up a batch write there.

    Args:
        is_window: its pages are those of the sequences' window tables.
        num_host_blocks: of a second tier in host memory, pinned where the layer is on another device.
    """

    def __init__(
        self,
        shape: LayerShape,
        num_blocks: int,
        page_tokens: int,
        dtype: torch.dtype,
        *,
        is_window: bool = False,
        num_host_blocks: int = 0,
    ) -> None:
        self.kv_heads = shape.kv_heads
        self.is_window = is_window
        self.page_tokens = page_tokens
        self.trash_page = num_blocks
        sizes = [(num_blocks + 1, page_tokens, shape.kv_heads, dim) for dim in (shape.key_dim, shape.value_dim)]
        self.keys, self.values = (torch.zeros(size, dtype=dtype, device=shape.device) for size in sizes)
        self._host: tuple[Tensor, ...] = ()
        if num_host_blocks:
            pin = shape.device.type != "cpu"
            self._host = tuple(torch.empty(num_host_blocks, *size[1:], dtype=dtype, pin_memory=pin) for size in sizes)

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value, [tokens, kv_heads, dim], in the given slots: page x page_tokens + place."""
        slots = slots.long()
        self.keys.flatten(0, 1).index_copy_(0, slots, key.to(self.keys.dtype))
        self.values.flatten(0, 1).index_copy_(0, slots, value.to(self.values.dtype))

    def move(self, transfer: Transfer) -> None:
        """Carry out a transfer that is of this layer's kind."""
        device = self.keys, self.values
        sources = self._host if transfer.kind == "load" else device
        targets = self._host if transfer.kind == "spill" else device
        for source, target in zip(sources, targets, strict=True):
            # All copies are in the order of the device's stream, and host memory is read back only so.
            target[transfer.target].copy_(source[transfer.source], non_blocking=True)
