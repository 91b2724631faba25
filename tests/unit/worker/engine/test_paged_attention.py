"""Attention over the paged cache against the plain formula, and what it allocates."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from worker.engine import kernels
from worker.engine.attention import Call
from worker.engine.block_table import BlockTable
from worker.engine.cache import LayerCache
from worker.engine.paged import PagedAttention, Span
from worker.engine.probe import LayerShape

BLOCK = 4


def plain(query, key, value, *, scale, window, softcap, sinks):
    """[heads, tokens, dim] over a whole sequence, in float64."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0).double(), value.repeat_interleave(groups, 0).double()
    scores = query.double() @ key.transpose(1, 2) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
    is_hidden = (distance < 0) | ((distance >= window) if window else False)
    scores = scores.masked_fill(is_hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, query.shape[1], 1)], -1)
    return scores.softmax(-1)[..., : query.shape[1]] @ value


@pytest.fixture(params=[True, False], ids=["flash", "scores"])
def with_flash(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(kernels, "has_flash", lambda keys, values: False)
    return request.param


@pytest.mark.parametrize("window", [None, 3, 10])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "value_dim"), [(4, 2, 8, 8), (3, 3, 8, 8), (4, 1, 12, 8)])
@pytest.mark.parametrize("scratch_bytes", [64 << 20, 1])
def test_equals_the_formula(with_flash, window, softcap, has_sinks, heads, kv_heads, dim, value_dim, scratch_bytes):
    generator = torch.Generator().manual_seed(5)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    lengths, tables = (26, 19), []
    # The first is in five runs, the second in one.
    for blocks in ([0, 1, 7, 6, 12, 13, 14], [20, 21, 22, 23, 24]):
        tables.append(BlockTable(BLOCK))
        tables[-1].extend(blocks)
    sinks = make(heads) if has_sinks else None
    query = [make(heads, length, dim) * 2 for length in lengths]
    key = [make(kv_heads, length, dim) for length in lengths]
    value = [make(kv_heads, length, value_dim) for length in lengths]
    module = nn.Module()
    layer = LayerCache(LayerShape(kv_heads, dim, value_dim, torch.device("cpu"), window), 30 * BLOCK, torch.float32)
    layer.keys.fill_(torch.nan)  # what was not written must not be read
    layer.values.fill_(torch.nan)
    got = [torch.zeros(length, heads, value_dim) for length in lengths]
    for cuts in ((0, 7), (0, 6)), ((7, 8), (6, 18)), ((8, 25), (18, 19)), ((25, 26), None):
        spans, slots, packed = [], [], []
        for number, cut in enumerate(cuts):
            if cut:
                spans.append(Span(len(slots), *cut, tuple(tables[number].runs(0, cut[1]))))
                slots += [tables[number].blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(*cut)]
                packed.append([tensor[number][:, slice(*cut)] for tensor in (query, key, value)])
        attention = PagedAttention({module: layer}, spans, torch.tensor(slots), scratch_bytes=scratch_bytes)
        q, k, v = (torch.cat(tensors, 1)[None] for tensors in zip(*packed, strict=True))
        out = attention.attend(Call(module, q, k, v, 0.4, window, softcap, sinks))[0]
        for number, cut in enumerate(cuts):
            if cut:
                span = spans[number]
                got[number][slice(*cut)] = out[span.row : span.row + cut[1] - cut[0]]
    for number in range(2):
        expected = plain(
            query[number], key[number], value[number], scale=0.4, window=window, softcap=softcap, sinks=sinks
        )
        assert (got[number].transpose(0, 1) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_as_exact_as_they_can_be(with_flash, dtype):
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(2, 40, 16, generator=generator).to(dtype) for _ in range(3))
    layer = LayerCache(LayerShape(2, 16, 16, torch.device("cpu"), None), 80, dtype)
    table = BlockTable(BLOCK)
    table.extend([0, 1, 2, 9, 8, 7, 6, 5, 4, 3])
    slots = torch.tensor([table.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(40)])
    module = nn.Module()
    attention = PagedAttention({module: layer}, [Span(0, 0, 40, tuple(table.runs(0, 40)))], slots, scratch_bytes=1)
    out = attention.attend(Call(module, query[None], key[None], value[None], 0.25, 7, None, None))[0]
    expected = plain(query, key, value, scale=0.25, window=7, softcap=None, sinks=None)
    assert out.dtype == dtype
    assert (out.transpose(0, 1) - expected).abs().max() < 4 * torch.finfo(dtype).eps


def allocated_bytes(num_keys, *, dtype, softcap, blocks, window=None):
    """Everything one decode row allocates in a layer, however short-lived."""
    layer = LayerCache(LayerShape(2, 32, 32, torch.device("cpu"), window), 16384, dtype)
    module = nn.Module()
    table = BlockTable(64)
    table.extend(blocks)
    query, key, value = (torch.randn(1, heads, 1, 32).to(dtype) for heads in (4, 2, 2))
    call = Call(module, query, key, value, 0.2, window, softcap, None)
    spans = [Span(0, num_keys - 1, num_keys, tuple(table.runs(0, num_keys)))]
    attention = PagedAttention({module: layer}, spans, torch.tensor([0]), scratch_bytes=1 << 20)
    attention.attend(call)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        attention.attend(call)
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return sum(size for size in sizes if size > 0)


NEIGHBOURS = list(range(256))
IN_FOUR = [*range(192, 256), *range(128, 192), *range(64, 128), *range(64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", [NEIGHBOURS, IN_FOUR], ids=["one run", "four runs"])
def test_a_decode_row_allocates_nothing_that_grows_with_the_context(dtype, blocks):
    short, long = (allocated_bytes(n, dtype=dtype, softcap=None, blocks=blocks) for n in (500, 16000))
    one_copy = 15500 * 2 * 32 * dtype.itemsize  # of the keys, or of the values, of the added context
    assert 0 < short < long + 1
    assert long - short < one_copy / 50


def test_written_out_scores_are_all_that_grows_where_there_is_a_soft_cap():
    short, long = (allocated_bytes(n, dtype=torch.float32, softcap=3.0, blocks=NEIGHBOURS) for n in (500, 16000))
    scores = 15500 * 4 * 4  # 4 heads, 4 bytes
    assert long - short < 4 * scores  # against 16 for a copy of keys and values


def test_a_window_bounds_what_is_read():
    sizes = [allocated_bytes(n, dtype=torch.float32, softcap=3.0, blocks=NEIGHBOURS, window=100) for n in (500, 16000)]
    assert sizes[1] <= sizes[0] * 1.5
