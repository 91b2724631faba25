"""Attention of some query rows over some keys, and the merging of such parts.

Each kernel gives, beside the output, the log-sum-exp of the scores. With these, outputs over different keys of the same
rows merge exactly, so a sequence whose cache lies in several places never has to be brought together. Both take
[1, heads, rows, dim] queries and views of the cache [1, heads, keys, dim], and read the views in place.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_HIDDEN = {torch.float16: -6e4}  # of a masked score; finite, so that a row without visible keys gives no NaN
_flash_op = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


class Partial(NamedTuple):
    """Output over some of the keys [1, heads, rows, dim], and log-sum-exp of their scores [1, heads, rows]."""

    out: Tensor
    lse: Tensor


def make_mask(rows: tuple[int, int], keys: tuple[int, int], window: int | None, like: Tensor) -> Tensor:
    """What to add to scores of rows at positions [a, b) against keys at [c, d): 0 where a row sees a key."""
    distance = torch.arange(*rows, device=like.device)[:, None] - torch.arange(*keys, device=like.device)
    is_hidden = distance < 0
    if window:
        is_hidden |= distance >= window
    mask = torch.zeros(distance.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(is_hidden, _HIDDEN.get(like.dtype, -1e30))


def has_flash(keys: Tensor, values: Tensor) -> bool:
    """Whether `flash` works on such a cache."""
    return _flash_op is not None and keys.device.type == "cpu" and keys.shape[-1] == values.shape[-1]


def flash(query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None, is_causal: bool) -> Partial:
    """torch's blockwise CPU kernel: no score matrix, and in bfloat16 ten and more times as fast as `scores`."""
    assert _flash_op is not None
    return Partial(*_flash_op(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale))


def scores(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, mask: Tensor | None
) -> Partial:
    """Plain matrix products, on any device and with soft-capped scores. Makes a score matrix [heads, rows, keys]."""
    query, key, value = query[0], key[0], value[0]
    if query.device.type == "cpu":  # narrow batched products are many times slower there than converting first
        query, key, value = query.float(), key.float(), value.float()
    weights = torch.bmm(query, key.transpose(1, 2)).float().mul_(scale)
    if softcap:
        weights.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        weights.add_(mask)
    lse = weights.logsumexp(-1)
    weights = weights.sub_(lse[..., None]).exp_()
    return Partial(torch.bmm(weights.to(value.dtype), value)[None], lse[None])


def merge(parts: list[Partial], sinks: Tensor | None) -> Tensor:
    """The output over the keys of all parts, and over `sinks`, scores of keys without value, [1, heads, rows]."""
    if len(parts) == 1 and sinks is None:
        return parts[0].out
    lses = [part.lse for part in parts]
    if sinks is not None:
        lses.append(sinks.float().expand_as(lses[0]))
    total = torch.stack(lses).logsumexp(0)
    out = sum(part.out.float() * (part.lse - total).exp_()[..., None] for part in parts)
    assert isinstance(out, Tensor)
    return out
