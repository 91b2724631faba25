"""Attention over the paged cache on a device, in several ways, and the choice between them.

| way | what it needs | what it cannot |
|---|---|---|
| varlen | torch's FlashAttention with block tables (not in 2.11), pages of 256 | softcap, sinks, heads over 256 |
| packed | the same without block tables: keys are gathered, which pays for chunks only | the same, single tokens |
| triton | Triton | |
| gather | nothing | be fast |

The functions of torch are young and change, so each way is tried on small random numbers against `gather` before it is
used, and one that fails or is off is left out, with a log line.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import log
from worker.engine.cuda.page_cache import PageCache
from worker.engine.cuda.step import Group, StepInputs
from worker.engine.probe import LayerShape

_log = log.get(__name__)
WAYS = ("varlen", "packed", "triton", "gather")
_SCORES = 16 << 20  # numbers that `gather` writes out at once
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
_FLASH_PAGE = 256
_FLASH_DIM = 256


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer attends."""

    scale: float
    window: int | None = None  # each token sees so many, itself included
    softcap: float | None = None
    sinks: Tensor | None = None  # [heads]: a score per head that takes part in the softmax and has no value


Way = Callable[[Tensor, PageCache, Group, Rule], Tensor]
"""(query [tokens, heads, key_dim], cache, rows, rule) → [tokens, heads, value_dim]; keys are in the cache already."""


# --- gather ------------------------------------------------------------------------------------------------------


def gather(query: Tensor, cache: PageCache, group: Group, rule: Rule) -> Tensor:
    """Keys and values brought together, padded to the longest row: the reference, and what works everywhere."""
    rows = group.num_rows
    token = torch.arange(group.max_tokens, device=query.device)
    starts = group.starts.long()
    sizes = starts[1:] - starts[:-1]
    index = (starts[:-1, None] + token).clamp_(max=group.num_tokens - 1)
    padded = query[index]  # [rows, max_tokens, heads, dim]
    out = query.new_zeros(rows, group.max_tokens, query.shape[1], cache.values.shape[-1])
    num_keys = group.tables.shape[1] * cache.page_tokens
    heads = query.shape[1]
    max_rows = max(1, _SCORES // (group.max_tokens * num_keys * heads))
    max_tokens = max(1, min(group.max_tokens, _SCORES // (num_keys * heads)))
    for low in range(0, rows, max_rows):
        part = slice(low, low + max_rows)
        pages = group.tables[part].long()
        keys = cache.keys[pages].flatten(1, 2)  # [rows, keys, kv_heads, dim]
        values = cache.values[pages].flatten(1, 2)
        # What others left on a page need not be finite, and a weight of 0 does not undo that.
        is_beyond = torch.arange(num_keys, device=query.device) >= group.lengths[part, None]
        for both in (keys, values):
            both.masked_fill_(is_beyond[:, :, None, None], 0)
        for begin in range(0, group.max_tokens, max_tokens):
            tokens = slice(begin, begin + max_tokens)
            # Where each token is among its row's keys; those beyond the row's own have no meaning and are left out.
            place = group.lengths[part, None].long() - sizes[part, None] + token[tokens]
            distance = place[:, :, None] - torch.arange(num_keys, device=query.device)
            is_hidden = distance < 0
            if rule.window:
                is_hidden |= distance >= rule.window
            out[part, tokens] = _attend(padded[part, tokens], keys, values, is_hidden, rule)
    packed = torch.arange(group.num_tokens, device=query.device)
    row = torch.searchsorted(starts[1:], packed, right=True)
    return out[row, packed - starts[row]]


def _attend(query: Tensor, keys: Tensor, values: Tensor, is_hidden: Tensor, rule: Rule) -> Tensor:
    query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))  # heads before tokens
    if rule.softcap is None and rule.sinks is None:
        out = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=~is_hidden[:, None], scale=rule.scale, enable_gqa=True
        )
        return out.transpose(1, 2)
    groups = query.shape[1] // keys.shape[1]
    wide_keys, wide_values = (part.float().repeat_interleave(groups, 1) for part in (keys, values))
    scores = query.float() @ wide_keys.transpose(2, 3) * rule.scale
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(is_hidden[:, None], -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.float()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : wide_values.shape[2]]
    return (weights @ wide_values).to(query.dtype).transpose(1, 2)


# --- torch's FlashAttention --------------------------------------------------------------------------------------


def varlen(query: Tensor, cache: PageCache, group: Group, rule: Rule) -> Tensor:
    """torch's FlashAttention, which reads the pages in place."""
    from torch.nn.attention.varlen import varlen_attn_out

    out = torch.empty_like(query)
    varlen_attn_out(
        out,
        query,
        cache.keys,
        cache.values,
        group.starts,
        group.offsets,
        group.max_tokens,
        group.max_length,
        scale=rule.scale,
        window_size=_window(rule),
        enable_gqa=query.shape[1] != cache.kv_heads,
        seqused_k=group.lengths,
        block_table=group.tables,
    )
    return out


def packed(query: Tensor, cache: PageCache, group: Group, rule: Rule) -> Tensor:
    """torch's FlashAttention over keys that are gathered first."""
    from torch.nn.attention.varlen import varlen_attn

    offsets = group.offsets.long()
    key = torch.arange(group.total_length, device=query.device)
    row = torch.searchsorted(offsets[1:], key, right=True)
    place = key - offsets[row]
    slots = group.tables[row, place // cache.page_tokens].long() * cache.page_tokens + place % cache.page_tokens
    out = varlen_attn(
        query,
        cache.keys.flatten(0, 1)[slots],
        cache.values.flatten(0, 1)[slots],
        group.starts,
        group.offsets,
        group.max_tokens,
        group.max_length,
        scale=rule.scale,
        window_size=_window(rule),
        **_gqa(query.shape[1] != cache.kv_heads),
    )
    assert isinstance(out, Tensor)
    return out


def _window(rule: Rule) -> tuple[int, int]:
    """FlashAttention counts the tokens to the left, itself not included."""
    return (rule.window - 1 if rule.window else -1, 0)


@functools.cache
def _gqa(is_wanted: bool) -> dict[str, Any]:
    """torch 2.11 takes fewer keys than queries without being told, and does not know the word."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": is_wanted} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def _triton(query: Tensor, cache: PageCache, group: Group, rule: Rule) -> Tensor:
    module = importlib.import_module("worker.engine.cuda.triton_attention")
    out: Tensor = module.attend(query, cache, group, rule)
    return out


_FUNCTIONS: dict[str, Way] = {"varlen": varlen, "packed": packed, "triton": _triton, "gather": gather}


# --- the choice --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells layers apart for the choice."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    has_softcap: bool
    has_sinks: bool
    is_single: bool  # rows of one token
    page_tokens: int
    dtype: torch.dtype
    device: torch.device


class ChosenAttention:
    """Stores, then attends, each kind of rows and layers in the best way that is right.

    Args:
        ways: those allowed, of `WAYS`; `gather` is always among them.
    """

    def __init__(self, ways: tuple[str, ...] = WAYS) -> None:
        self._ways = ways

    def way(self, kind: Kind) -> str:
        """The name of the way for such layers."""
        return choose(kind, self._ways)

    def store(self, cache: PageCache, inputs: StepInputs, key: Tensor, value: Tensor) -> None:
        """Key and value, [tokens, kv_heads, dim], into the cache."""
        cache.write(inputs.paging(cache.is_window).slots, key, value)

    def attend(self, query: Tensor, cache: PageCache, inputs: StepInputs, rule: Rule) -> Tensor:
        """Query [tokens, heads, key_dim] over what is stored; [tokens, heads, value_dim]."""
        groups = inputs.paging(cache.is_window).groups
        parts = []
        for group in groups:
            kind = Kind(
                heads=query.shape[1],
                kv_heads=cache.kv_heads,
                key_dim=cache.keys.shape[-1],
                value_dim=cache.values.shape[-1],
                window=rule.window,
                has_softcap=rule.softcap is not None,
                has_sinks=rule.sinks is not None,
                is_single=group.is_single,
                page_tokens=cache.page_tokens,
                dtype=cache.keys.dtype,
                device=query.device,
            )
            attend = _FUNCTIONS[self.way(kind)]
            part = query.narrow(0, group.first, group.num_tokens).to(cache.keys.dtype)
            parts.append(attend(part.contiguous(), cache, group, rule))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.to(query.dtype)


@functools.cache
def choose(kind: Kind, ways: tuple[str, ...]) -> str:
    """The first way that can attend such layers and does so rightly."""
    for way in WAYS:
        if way == "gather":
            break
        if way in ways and _unfit(way, kind) is None:
            if (error := _try(way, kind)) is None:
                _log.info("attention.chosen", way=way, single=kind.is_single, window=kind.window or 0)
                return way
            _log.warning("attention.left_out", way=way, single=kind.is_single, reason=error)
    _log.warning("attention.chosen", way="gather", single=kind.is_single, window=kind.window or 0)
    return "gather"


def _unfit(way: str, kind: Kind) -> str | None:
    """Why not even to try; None: it may be tried."""
    if way == "triton":
        return None if importlib.util.find_spec("triton") else "Triton is not installed"
    if kind.has_softcap or kind.has_sinks:
        return "scores are changed"
    if kind.key_dim != kind.value_dim or kind.key_dim > _FLASH_DIM or kind.key_dim % 8:
        return "the size of its heads"
    if kind.dtype not in (torch.float16, torch.bfloat16):
        return "the dtype"
    if way == "varlen":
        return "the size of pages" if kind.page_tokens % _FLASH_PAGE else _no_block_tables()
    return "single tokens do not pay for gathering" if kind.is_single else None


@functools.cache
def _no_block_tables() -> str | None:
    try:
        from torch.nn.attention.varlen import varlen_attn_out
    except ImportError:
        return "this torch has none with block tables"
    has = {"block_table", "seqused_k"} <= set(inspect.signature(varlen_attn_out).parameters)
    return None if has else "this torch has none with block tables"


@torch.inference_mode()
def _try(way: str, kind: Kind) -> str | None:
    """Attend small random numbers that way and by gathering; None if they are the same, else what is wrong."""
    try:
        query, cache, group, rule = trial(kind)
        exact = replace(rule, sinks=None if rule.sinks is None else rule.sinks.float())
        wide = PageCache(_shape(kind), len(cache.keys) - 1, kind.page_tokens, torch.float32)
        wide.keys.copy_(cache.keys)
        wide.values.copy_(cache.values)
        expected = gather(query.float(), wide, group, exact)
        error = float((_FUNCTIONS[way](query, cache, group, rule).float() - expected).norm() / expected.norm())
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"[:200]
    return None if error <= _TOLERANCE.get(kind.dtype, 2e-2) else f"it is off by {error:.2%}"


def trial(kind: Kind, *, seed: int = 6) -> tuple[Tensor, PageCache, Group, Rule]:
    """Random numbers for such layers: three rows of unlike length, their pages in disorder."""
    page = kind.page_tokens
    lengths = [page + page // 3 + 1, 5, 2 * page]
    sizes = [1, 1, 1] if kind.is_single else [page // 2 + 3, 5, 2]
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(kind.device, kind.dtype)

    cache = PageCache(_shape(kind), 6, page, kind.dtype)
    cache.keys.copy_(random(*cache.keys.shape))
    cache.values.copy_(random(*cache.values.shape))

    def column(*numbers: int) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=kind.device)

    total = sum(sizes)
    group = Group(
        first=0,
        num_tokens=total,
        starts=column(0, sizes[0], sizes[0] + sizes[1], total),
        max_tokens=max(sizes),
        tables=column(4, 1, 3, 0, 5, 2).view(3, 2),
        lengths=column(*lengths),
        offsets=column(0, lengths[0], lengths[0] + lengths[1], sum(lengths)),
        max_length=max(lengths),
        total_length=sum(lengths),
    )
    rule = Rule(
        scale=kind.key_dim**-0.5,
        window=min(kind.window, page // 2) if kind.window else None,
        softcap=20.0 if kind.has_softcap else None,
        sinks=random(kind.heads) if kind.has_sinks else None,
    )
    return random(total, kind.heads, kind.key_dim), cache, group, rule


def _shape(kind: Kind) -> LayerShape:
    return LayerShape(kind.kv_heads, kind.key_dim, kind.value_dim, kind.device, None)
