# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# ruff: noqa: SIM102 (a condition that is known when a kernel is compiled stands by itself)
"""Paged attention as a Triton kernel: any page size and head size, softcap, sinks, windows, rows of any length.

A program answers some tokens of one row for all heads that share one key head: tokens and heads together are the rows
of its matrices, so a single token still fills them. Where there are few programs, each row's keys are divided among
several, whose partial results are joined by a second kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.attention import Rule
from worker.engine.cuda.page_cache import PageCache
from worker.engine.cuda.step import Group

_ENOUGH = 256  # programs that keep a large device busy
_MAX_SPLITS = 32
_SPLIT_KEYS = 256  # at least


@triton.jit
def _attend(
    query, keys, values, out, lse, starts, lengths, tables, sinks,
    scale, softcap, num_tokens, table_width, num_splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    KEY_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, IS_SPLIT: tl.constexpr, IS_EXACT: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = HEADS // KV_HEADS
    row = tl.program_id(0)
    kv_head = tl.program_id(1) % KV_HEADS
    tile = tl.program_id(1) // KV_HEADS
    split = tl.program_id(2)
    start = tl.load(starts + row)
    size = tl.load(starts + row + 1) - start
    length = tl.load(lengths + row)
    line = tile * ROWS + tl.arange(0, ROWS)  # of the row's tokens times the group's heads
    token = line // GROUPS
    head = kv_head * GROUPS + line % GROUPS
    is_line = token < size
    if tile * ROWS < size * GROUPS:
        place = length - size + token  # of the token among its row's keys
        key_lane = tl.arange(0, KEY_BLOCK)
        value_lane = tl.arange(0, VALUE_BLOCK)
        at = ((start + token) * HEADS + head).to(tl.int64)
        q = tl.load(
            query + at[:, None] * KEY_DIM + key_lane[None, :],
            mask=is_line[:, None] & (key_lane[None, :] < KEY_DIM),
            other=0.0,
        )
        first_token = tile * ROWS // GROUPS
        last_token = tl.minimum((tile * ROWS + ROWS - 1) // GROUPS, size - 1)
        low = 0
        if WINDOW > 0:
            low = tl.maximum(0, length - size + first_token - WINDOW + 1)
        high = length - size + last_token + 1
        if IS_SPLIT:
            share = tl.cdiv(tl.cdiv(high - low, num_splits), KEYS) * KEYS
            low = low + split * share
            high = tl.minimum(high, low + share)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        if HAS_SINKS:
            if split == 0:
                highest = tl.load(sinks + head).to(tl.float32)
                total = tl.full([ROWS], 1.0, tl.float32)
        sums = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
        for begin in range((low // KEYS) * KEYS, high, KEYS):
            key = begin + tl.arange(0, KEYS)
            is_key = key < high
            page = tl.load(tables + row * table_width + key // PAGE, mask=is_key, other=0).to(tl.int64)
            slot = (page * PAGE + key % PAGE) * KV_HEADS + kv_head
            k = tl.load(
                keys + slot[None, :] * KEY_DIM + key_lane[:, None],
                mask=is_key[None, :] & (key_lane[:, None] < KEY_DIM),
                other=0.0,
            )
            if IS_EXACT:
                scores = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale
            else:
                scores = tl.dot(q, k) * scale
            if HAS_SOFTCAP:
                # tanh by exp of something negative, which cannot overflow
                tilted = tl.abs(scores) / softcap
                shrunk = tl.exp(-2 * tilted)
                scores = softcap * tl.where(scores < 0, -1.0, 1.0) * (1 - shrunk) / (1 + shrunk)
            distance = place[:, None] - key[None, :]
            is_seen = (distance >= 0) & is_key[None, :] & (key >= low)[None, :]
            if WINDOW > 0:
                is_seen = is_seen & (distance < WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))
            now = tl.maximum(highest, tl.max(scores, 1))
            safe = tl.where(now == float("-inf"), 0.0, now)
            weights = tl.exp(scores - safe[:, None])
            shrink = tl.exp(highest - safe)
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(
                values + slot[:, None] * VALUE_DIM + value_lane[None, :],
                mask=is_key[:, None] & (value_lane[None, :] < VALUE_DIM),
                other=0.0,
            )
            if IS_EXACT:
                sums = sums * shrink[:, None] + tl.dot(weights, v.to(tl.float32), input_precision="ieee")
            else:
                sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
            highest = now
        result = sums / tl.where(total > 0, total, 1.0)[:, None]
        is_stored = is_line[:, None] & (value_lane[None, :] < VALUE_DIM)
        if IS_SPLIT:
            place_out = split.to(tl.int64) * num_tokens * HEADS + at
            tl.store(out + place_out[:, None] * VALUE_DIM + value_lane[None, :], result, mask=is_stored)
            sums_of_scores = highest + tl.log(tl.where(total > 0, total, 1.0))  # minus infinity where nothing is seen
            tl.store(lse + place_out, sums_of_scores, mask=is_line)
        else:
            tl.store(
                out + at[:, None] * VALUE_DIM + value_lane[None, :], result.to(out.dtype.element_ty), mask=is_stored
            )


@triton.jit
def _join(
    parts, lse, out, num_lines, VALUE_DIM: tl.constexpr, VALUE_BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLIT_BLOCK)
    lane = tl.arange(0, VALUE_BLOCK)
    sums = tl.load(lse + split * num_lines + line, mask=split < SPLITS, other=float("-inf"))
    weights = tl.exp(sums - tl.max(sums, 0))
    weights = weights / tl.sum(weights, 0)
    values = tl.load(
        parts + (split[:, None] * num_lines + line) * VALUE_DIM + lane[None, :],
        mask=(split < SPLITS)[:, None] & (lane < VALUE_DIM)[None, :],
        other=0.0,
    )
    result = tl.sum(values * weights[:, None], 0)
    tl.store(out + line * VALUE_DIM + lane, result.to(out.dtype.element_ty), mask=lane < VALUE_DIM)


def attend(query: Tensor, cache: PageCache, group: Group, rule: Rule) -> Tensor:
    """Query [tokens, heads, key_dim] over the pages of `group`; [tokens, heads, value_dim]."""
    num_tokens, heads, key_dim = query.shape
    value_dim = cache.values.shape[-1]
    groups = heads // cache.kv_heads
    rows = 16 if groups * group.max_tokens <= 16 else 64 if key_dim <= 128 else 32
    keys = 64 if key_dim <= 128 else 32
    tiles = triton.cdiv(group.max_tokens * groups, rows)
    num_splits = _divide(group, cache, tiles)
    is_split = num_splits > 1
    out = query.new_empty(num_tokens, heads, value_dim)
    parts, lse = out, out
    if is_split:
        parts = query.new_empty(num_splits, num_tokens, heads, value_dim, dtype=torch.float32)
        lse = query.new_empty(num_splits, num_tokens, heads, dtype=torch.float32)
    value_block = max(16, triton.next_power_of_2(value_dim))
    _attend[group.num_rows, tiles * cache.kv_heads, num_splits](
        query,
        cache.keys,
        cache.values,
        parts,
        lse,
        group.starts,
        group.lengths,
        group.tables,
        out if rule.sinks is None else rule.sinks,
        rule.scale,
        rule.softcap or 1.0,
        num_tokens,
        group.tables.stride(0),
        num_splits,
        HEADS=heads,
        KV_HEADS=cache.kv_heads,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        KEY_BLOCK=max(16, triton.next_power_of_2(key_dim)),
        VALUE_BLOCK=value_block,
        PAGE=cache.page_tokens,
        ROWS=rows,
        KEYS=keys,
        WINDOW=rule.window or 0,
        HAS_SOFTCAP=rule.softcap is not None,
        HAS_SINKS=rule.sinks is not None,
        IS_SPLIT=is_split,
        IS_EXACT=query.dtype == torch.float32 or _is_interpreted(),
        num_warps=4,
        num_stages=2,
    )
    if is_split:
        _join[num_tokens * heads,](
            parts,
            lse,
            out,
            num_tokens * heads,
            VALUE_DIM=value_dim,
            VALUE_BLOCK=value_block,
            SPLITS=num_splits,
            SPLIT_BLOCK=triton.next_power_of_2(num_splits),
            num_warps=2,
        )
    return out


def _divide(group: Group, cache: PageCache, tiles: int) -> int:
    """Among how many programs each row's keys are divided."""
    programs = group.num_rows * cache.kv_heads * tiles
    most = min(_MAX_SPLITS, triton.cdiv(group.max_length, _SPLIT_KEYS))
    num_splits: int = max(1, min(most, _ENOUGH // programs))
    return num_splits


def _is_interpreted() -> bool:
    """Triton's interpreter multiplies no bfloat16 matrices."""
    return bool(triton.knobs.runtime.interpret)
