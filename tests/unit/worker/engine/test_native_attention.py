"""Attention of the native library against the same in plain torch, over caches that lie in several places."""

import pytest
import torch

from worker.engine.block_table import Run
from worker.engine.cache import LayerCache
from worker.engine.native import library
from worker.engine.native.paging import attend, run_array, span_array
from worker.engine.paged import Span
from worker.engine.probe import LayerShape

pytestmark = pytest.mark.skipif(library.find() is None, reason="there is no native library")
KV_HEADS, DIM, SLOTS = 2, 32, 1600

# A decoding row, a chunk in the middle of a prompt, a whole prompt; the second lies in three runs, one of odd length.
SPANS = [
    Span(0, 150, 151, (Run(0, 151, 1000),)),
    Span(1, 90, 120, (Run(0, 33, 300), Run(33, 96, 64), Run(96, 120, 500))),
    Span(31, 0, 70, (Run(0, 70, 1300),)),
]
TOKENS = 101


def make_cache(dtype: torch.dtype) -> LayerCache:
    cache = LayerCache(LayerShape(KV_HEADS, DIM, DIM, torch.device("cpu"), None), SLOTS, dtype)
    generator = torch.Generator().manual_seed(2)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=generator))
    cache.values.copy_(torch.randn(cache.values.shape, generator=generator))
    return cache


def plain(cache, spans, query, *, scale, window, softcap, sinks) -> torch.Tensor:
    out = torch.empty(query.shape)
    groups = query.shape[1] // cache.kv_heads
    for span in spans:
        slots = torch.cat([torch.arange(run.slot, run.slot + run.stop - run.start) for run in span.runs])
        distance = torch.arange(span.start, span.stop)[:, None] - torch.arange(span.stop)
        hidden = (distance < 0) | ((distance >= window) if window else torch.zeros_like(distance, dtype=torch.bool))
        rows = slice(span.row, span.row + span.stop - span.start)
        for head in range(query.shape[1]):
            keys = cache.keys[0, head // groups, slots].float()
            scores = query[rows, head].float() @ keys.T * scale
            if softcap:
                scores = torch.tanh(scores / softcap) * softcap
            scores = scores.masked_fill(hidden, -torch.inf)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head].expand(len(scores), 1)], 1)
            weights = scores.softmax(-1)[:, : len(slots)]
            out[rows, head] = weights @ cache.values[0, head // groups, slots].float()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [2, 6, 18])
@pytest.mark.parametrize("window", [None, 7, 65])
@pytest.mark.parametrize("extra", ["", "softcap", "sinks"])
def test_equals_plain_attention(dtype, heads, window, extra):
    cache = make_cache(dtype)
    query = torch.randn(TOKENS, heads, DIM, generator=torch.Generator().manual_seed(3)).to(dtype)
    options = {
        "scale": 0.3,
        "window": window,
        "softcap": 2.0 if extra == "softcap" else None,
        "sinks": torch.linspace(-1, 3, heads) if extra == "sinks" else None,
    }
    ours = attend(cache, span_array(SPANS), run_array(SPANS), query, **options)
    expected = plain(cache, SPANS, query, **options)
    tolerance = 2e-6 if dtype == torch.float32 else 4e-3
    assert ((ours.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < tolerance


def test_long_contexts_are_cut_among_threads():
    cache = make_cache(torch.float32)
    spans = [Span(0, 1500, 1501, (Run(0, 700, 800), Run(700, 1501, 0)))]
    query = torch.randn(1, 4, DIM, generator=torch.Generator().manual_seed(3))
    options = {"scale": 0.3, "window": None, "softcap": None, "sinks": torch.tensor([0.0, 1.0, 2.0, 3.0])}
    expected = plain(cache, spans, query, **options)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            ours = attend(cache, span_array(spans), run_array(spans), query, **options)
            assert torch.allclose(ours, expected, atol=1e-6)
    finally:
        torch.set_num_threads(1)
