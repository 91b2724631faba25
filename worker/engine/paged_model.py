"""A transformers model computing through a paged KV cache: the general path, for any model with common attention."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from worker.engine.attention import answered_by
from worker.engine.cache import LayerCache
from worker.engine.paged import PagedAttention, Span
from worker.engine.plan import Row
from worker.engine.probe import probe


class PagedModel:
    """A model, its paged cache, and the forward pass that joins them.

    Args:
        model: a causal language model of transformers, on its device. Its attention implementation is set to ours.
        dtype: of the cache.
        num_blocks, block_tokens: size of the cache.
        scratch_bytes: bound of what attention writes out for a tile.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, num_blocks: int, block_tokens: int, scratch_bytes: int = 64 << 20
    ) -> None:
        found = probe(model)
        self.vocab_size = found.vocab_size
        self._model = model
        self._device = next(model.parameters()).device
        self._scratch_bytes = scratch_bytes
        num_slots = num_blocks * block_tokens
        self._layers = {module: LayerCache(shape, num_slots, dtype) for module, shape in found.layers.items()}
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

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
        for row in rows:
            first = len(ids)
            ids += row.sequence.ids[row.start : row.stop]
            positions += range(row.start, row.stop)
            kept += (first + position - row.start for position in keep(row))
            table = row.sequence.table
            for run in table.runs(row.start, row.stop):
                slots += range(run.slot, run.slot + run.stop - run.start)
            spans.append(Span(first, row.start, row.stop, tuple(table.runs(0, row.stop))))
        packed = torch.tensor([ids, positions, slots], device=self._device)
        keep_index = torch.tensor(kept, dtype=torch.long, device=self._device)
        attention = PagedAttention(self._layers, spans, packed[2], scratch_bytes=self._scratch_bytes)
        options = {"logits_to_keep": keep_index} if self._can_keep else {}
        with answered_by(attention):
            output = self._model(input_ids=packed[:1], position_ids=packed[1:2], use_cache=False, **options)
        logits: Tensor = output.logits[0]
        return logits if self._can_keep else logits[keep_index]
