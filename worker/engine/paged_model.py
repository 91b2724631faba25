"""A transformers model computing through a paged KV cache: the general path, for any model with common attention."""

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from worker.engine.attention import answered_by
from worker.engine.cache import LayerCache, move_blocks
from worker.engine.cache_space import WindowCap
from worker.engine.paged import PagedAttention, Span
from worker.engine.plan import Row, Transfer
from worker.engine.probe import probe


class Sees(Protocol):
    """Computes rows of which some have images. `worker.engine.vision.seer.Seer` does."""

    def logits(self, rows: Sequence[Row], packed: Tensor, kept: Tensor, /) -> Tensor:
        """Of the packed tokens `kept`; the first rows of `packed` are ids and positions."""
        ...


class PagedModel:
    """A model, its paged cache, and the forward pass that joins them.

    Args:
        model: a causal language model of transformers, on its device. Its attention implementation is set to ours.
        dtype: of the cache.
        num_blocks, block_tokens: size of the cache.
        cap: layers with a sliding window have so many blocks instead, and tables of their own.
        num_host_blocks: of a second tier in host memory.
        is_native: attention may be computed by the native library.
        scratch_bytes: bound of what attention writes out for a tile.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        scratch_bytes: int = 64 << 20,
        *,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
        is_native: bool = False,
    ) -> None:
        self.seer: Sees | None = None  # for sequences with images
        found = probe(model)
        self._is_native = is_native
        self.vocab_size = found.vocab_size
        self._model = model
        self._device = next(model.parameters()).device
        self._scratch_bytes = scratch_bytes
        self._block_tokens = block_tokens
        self._is_capped = cap is not None
        self._layers = {}
        for module, shape in found.layers.items():
            is_window = cap is not None and shape.window is not None
            self._layers[module] = LayerCache(
                shape,
                (cap.num_blocks if cap and is_window else num_blocks) * block_tokens,
                dtype,
                is_window=is_window,
                num_host_slots=num_host_blocks * block_tokens,
            )
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks of the cache."""
        move_blocks(self._layers.values(), transfers, self._block_tokens)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], keep: Callable[[Row], range]) -> Tensor:
        """Compute the rows' tokens, packed one row behind the other, and store their keys and values.

        Returns:
            The logits of the positions that `keep` names for each row, [positions, vocabulary].
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        kept: list[int] = []
        spans: list[Span] = []
        window_slots: list[int] = []
        window_spans: list[Span] = []
        for row in rows:
            first = len(ids)
            ids += row.ids
            positions += range(row.start, row.stop)
            kept += (first + position - row.start for position in keep(row))
            table = row.sequence.table
            slots += table.slots(row.start, row.stop)
            spans.append(Span(first, row.start, row.stop, tuple(table.runs(0, row.stop))))
            if self._is_capped:
                table = row.sequence.window_table
                window_slots += table.slots(row.start, row.stop)
                window_spans.append(Span(first, row.start, row.stop, tuple(table.runs(0, row.stop))))
        packed = torch.tensor([ids, positions, slots, window_slots or slots], device=self._device)
        keep_index = torch.tensor(kept, dtype=torch.long, device=self._device)
        attention = PagedAttention(
            self._layers,
            spans,
            packed[2],
            scratch_bytes=self._scratch_bytes,
            window_spans=window_spans or spans,
            window_slots=packed[3],
            is_native=self._is_native,
        )
        options = {"logits_to_keep": keep_index} if self._can_keep else {}
        with answered_by(attention):
            if self.seer is not None and any(row.sequence.visual is not None for row in rows):
                return self.seer.logits(rows, packed, keep_index)
            output = self._model(input_ids=packed[:1], position_ids=packed[1:2], use_cache=False, **options)
        logits: Tensor = output.logits[0]
        return logits if self._can_keep else logits[keep_index]
