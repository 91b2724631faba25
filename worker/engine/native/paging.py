"""The paged cache as the native library reads it, and attention over it."""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.cache import LayerCache
from worker.engine.native import library

if TYPE_CHECKING:  # which computes with this module
    from worker.engine.paged import Span

_DTYPES = (torch.float32, torch.bfloat16)


def cache_struct(cache: LayerCache) -> library.Cache:
    """Points into the cache's tensors, which must outlive it."""
    keys, values = cache.keys, cache.values
    assert keys.dtype in _DTYPES and keys.is_contiguous() and values.is_contiguous(), keys.dtype
    return library.Cache(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        kv_heads=keys.shape[1],
        slots=keys.shape[2],
        key_dim=keys.shape[3],
        value_dim=values.shape[3],
        is_bfloat16=keys.dtype == torch.bfloat16,
    )


def span_array(spans: "Sequence[Span]") -> Tensor:
    """[spans, 5]: row, start, stop, and which of the runs are its."""
    rows: list[tuple[int, int, int, int, int]] = []
    first = 0
    for span in spans:
        rows.append((span.row, span.start, span.stop, first, first + len(span.runs)))
        first += len(span.runs)
    return torch.tensor(rows, dtype=torch.int64)


def run_array(spans: "Sequence[Span]") -> Tensor:
    """[runs, 3]: start, stop, slot, of one span after the other."""
    return torch.tensor([run for span in spans for run in span.runs], dtype=torch.int64)


def can_attend(cache: LayerCache, heads: int) -> bool:
    """Whether the library computes attention over such a cache."""
    if cache.keys.device.type != "cpu" or cache.keys.dtype not in _DTYPES:
        return False
    found = library.find()
    if found is None:
        return False
    lanes = 2 * found.plexus_lanes()
    dims_fit = cache.keys.shape[3] % lanes == 0 and cache.values.shape[3] % lanes == 0
    return dims_fit and heads // cache.kv_heads <= 64


def attend(
    cache: LayerCache,
    spans: Tensor,
    runs: Tensor,
    query: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of query [rows, heads, key_dim], of the cache's type, over the cache; [rows, heads, value_dim].

    Args:
        spans, runs: see `span_array` and `run_array`.
    """
    rows, heads, _ = query.shape
    query = query.contiguous()
    out = query.new_empty(rows, heads, cache.values.shape[3])
    held = None if sinks is None else sinks.detach().float().contiguous()
    call = library.Attention(
        cache=cache_struct(cache),
        heads=heads,
        scale=scale,
        softcap=softcap or 0.0,
        window=window or 0,
        sinks=None if held is None else held.data_ptr(),
    )
    library.load().plexus_attention(
        ctypes.byref(call),
        spans.data_ptr(),
        len(spans),
        runs.data_ptr(),
        rows,
        query.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
