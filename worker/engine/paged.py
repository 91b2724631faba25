"""Attention over the paged cache: what answers the layers' calls during a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine import kernels
from worker.engine.attention import Call
from worker.engine.block_table import Run
from worker.engine.cache import LayerCache
from worker.engine.native import paging
from worker.engine.tiles import Tile, make_tiles

_ROWS = 1024  # of a tile; bounds the mask where the cache of these very rows is in two places
_WINDOW_ROWS = 256  # the same where a window slides: so few of its keys are masked
_SCORE_KEYS = 4096  # keys of a part where scores are written out


@dataclass(frozen=True, slots=True)
class Span:
    """Packed rows from `row` on are the positions [start, stop) of one sequence, whose cache lies in `runs`."""

    row: int
    start: int
    stop: int
    runs: tuple[Run, ...]


class PagedAttention:
    """One step's answers. The packed tokens are those of `spans`, one after the other; `slots` is where each goes.

    `window_spans` and `window_slots` are the same for layers whose cache is capped to a window, where there are any.
    With `is_native` the native library computes what it can. Otherwise the cache is read as views, one for each run of
    a sequence; nothing gathers or copies it. What is written out (scores, masks) is cut to about `scratch_bytes`.
    """

    def __init__(
        self,
        layers: Mapping[Any, LayerCache],  # by who asks
        spans: list[Span],
        slots: Tensor,
        *,
        scratch_bytes: int,
        window_spans: list[Span] | None = None,
        window_slots: Tensor | None = None,
        is_native: bool = False,
    ) -> None:
        self._layers = layers
        self._spans = {False: spans, True: spans if window_spans is None else window_spans}
        self._slots = {False: slots, True: slots if window_slots is None else window_slots}
        self._scratch_bytes = scratch_bytes
        self._is_native = is_native
        self._arrays: dict[bool, tuple[Tensor, Tensor]] = {}
        self._tiles: dict[tuple[bool, int | None, int, int | None], list[Tile]] = {}

    def attend(self, call: Call) -> Tensor:
        """Store the call's keys and values, then answer it."""
        layer = self._layers[call.module]
        layer.write(self._slots[layer.is_window].to(call.key.device), call.key, call.value)
        if self._is_native and paging.can_attend(layer, call.query.shape[1]):
            return self._attend_native(layer, call)
        is_flash = call.softcap is None and kernels.has_flash(layer.keys, layer.values)
        _, heads, tokens, dim = call.query.shape
        groups = heads // layer.kv_heads
        query = call.query.to(layer.keys.dtype).view(1, layer.kv_heads, groups, tokens, dim)
        out = query.new_empty(1, tokens, layer.kv_heads, groups, layer.values.shape[-1])
        sinks = None if call.sinks is None else call.sinks.view(1, layer.kv_heads, groups)
        for tile in self._make_tiles(layer.is_window, call.window, heads, is_flash):
            if tile.stop - tile.start == 1:  # the heads that share keys are the rows
                out[:, tile.row] = self._attend(layer, query[:, :, :, tile.row], sinks, tile, call, is_flash)
                continue
            rows = slice(tile.row, tile.row + tile.stop - tile.start)
            for group in range(groups):
                sink = None if sinks is None else sinks[:, :, group, None]
                part = self._attend(layer, query[:, :, group, rows], sink, tile, call, is_flash)
                out[:, rows, :, group] = part.transpose(1, 2)
        return out.view(1, tokens, heads, -1).to(call.query.dtype)

    def _attend_native(self, layer: LayerCache, call: Call) -> Tensor:
        if layer.is_window not in self._arrays:
            spans = self._spans[layer.is_window]
            self._arrays[layer.is_window] = paging.span_array(spans), paging.run_array(spans)
        spans_array, runs_array = self._arrays[layer.is_window]
        out = paging.attend(
            layer,
            spans_array,
            runs_array,
            call.query[0].transpose(0, 1).to(layer.keys.dtype),
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
            sinks=call.sinks,
        )
        return out[None].to(call.query.dtype)

    def _attend(
        self, layer: LayerCache, query: Tensor, sinks: Tensor | None, tile: Tile, call: Call, is_flash: bool
    ) -> Tensor:
        partials: list[kernels.Partial] = []
        for part in tile.parts:
            num_keys = part.stop - part.start
            key = layer.keys.narrow(2, part.slot, num_keys)
            value = layer.values.narrow(2, part.slot, num_keys)
            mask = None
            if part.visible == "mask" or (part.visible == "causal" and not is_flash):
                like = query if is_flash else query.new_empty(0, dtype=torch.float32)
                mask = kernels.make_mask((tile.start, tile.stop), (part.start, part.stop), call.window, like)
            if is_flash:
                is_causal = part.visible == "causal"
                partials.append(kernels.flash(query, key, value, scale=call.scale, mask=mask, is_causal=is_causal))
            else:
                partials.append(
                    kernels.scores(query, key, value, scale=call.scale, softcap=call.softcap, mask=mask),
                )
        return kernels.merge(partials, sinks)

    def _make_tiles(self, is_window: bool, window: int | None, heads: int, is_flash: bool) -> list[Tile]:
        """The step's tiles for such a layer; layers of a kind share them."""
        max_rows = _WINDOW_ROWS if window else _ROWS
        max_keys = None if is_flash else _SCORE_KEYS
        if max_keys:  # scores, their exponentials and the mask
            bound = max(1, self._scratch_bytes // (3 * 4 * heads * max_keys))
            max_rows = min(max_rows, bound)
        tiles = self._tiles.get((is_window, window, max_rows, max_keys))
        if tiles is None:
            tiles = self._tiles[is_window, window, max_rows, max_keys] = [
                tile
                for span in self._spans[is_window]
                for tile in make_tiles(
                    span.row,
                    span.start,
                    span.stop,
                    span.runs,
                    window=window,
                    max_rows=max_rows,
                    max_keys=max_keys,
                )
            ]
        return tiles
