"""A described decoder with a paged cache, under the interface of `worker.engine.paged_model.PagedModel`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.engine.cache import LayerCache, move_blocks
from worker.engine.cache_space import WindowCap
from worker.engine.fast.native_decoder import NativeDecoder
from worker.engine.fast.packing import pack
from worker.engine.fast.plain_decoder import PlainDecoder
from worker.engine.plan import Row, Transfer
from worker.engine.probe import LayerShape


class FastModel:
    """A decoder, its paged cache, and the forward pass that joins them.

    Args:
        decoder: with its weights.
        shapes: of its layers' caches.
        dtype: of the cache.
        num_blocks, block_tokens: size of the cache.
        cap: layers with a sliding window have so many blocks instead, and tables of their own.
        num_host_blocks: of a second tier in host memory.
    """

    def __init__(
        self,
        decoder: NativeDecoder | PlainDecoder,
        shapes: Sequence[LayerShape],
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        *,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
    ) -> None:
        self.vocab_size = decoder.vocab_size
        self._block_tokens = block_tokens
        self._is_capped = cap is not None
        self._caches = []
        for shape in shapes:
            is_window = cap is not None and shape.window is not None
            blocks = cap.num_blocks if cap is not None and is_window else num_blocks
            self._caches.append(
                LayerCache(
                    shape,
                    blocks * block_tokens,
                    dtype,
                    is_window=is_window,
                    num_host_slots=num_host_blocks * block_tokens,
                )
            )
        self._decoder = decoder.bind(self._caches)

    @torch.inference_mode()
    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks of the cache."""
        move_blocks(self._caches, transfers, self._block_tokens)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], keep: Callable[[Row], range]) -> Tensor:
        """Compute the rows' tokens, and store their keys and values.

        Returns:
            The logits of the positions that `keep` names for each row, [positions, vocabulary].
        """
        return self._decoder.forward(pack(rows, keep, is_capped=self._is_capped))
