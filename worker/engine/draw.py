"""Drawing a token from logits: top-k, top-p and min-p in one pass that does not sort the vocabulary.

A token is kept when its scaled logit reaches a threshold, the highest of the three that the row asks for. Equal logits
are kept or dropped together, and the draw goes through the kept tokens in the order of their ids; so what a row gets
depends on its own logits and its own random number alone, not on the rows beside it.
"""

import struct
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

_FIRST_WIDTH = 128  # candidates to look at first; nearly always enough
_WIDER = 16  # and by how much to widen the search where they are not

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Which tokens a row may draw: top_k (0: off), top_p (1: off), min_p (0: off)."""

    top_k: int
    top_p: float
    min_p: float

    @property
    def is_open(self) -> bool:
        """Whether every token may be drawn."""
        return not self.top_k and self.top_p >= 1 and not self.min_p


def uniform(seed: int, choice: int, position: int) -> float:
    """The random number in [0, 1) for one token. The same arguments always give the same number."""
    packed = struct.pack("<QQQ", seed & _MASK, choice & _MASK, position)
    bits: int = struct.unpack("<Q", blake2b(packed, digest_size=8).digest())[0]
    return (bits >> 12) / (1 << 52)  # 52 bits: times any double, this stays below that double


def draw(scaled: Tensor, limits: list[Limits], uniforms: list[float]) -> Tensor:
    """One token id per row.

    Args:
        scaled: float32 [rows, vocabulary]: logits less the row's highest, over its temperature; the highest is 0.
        limits, uniforms: one for each row.
    """
    points = torch.tensor(uniforms, dtype=torch.float64, device=scaled.device)[:, None]
    ids = torch.empty(len(limits), dtype=torch.long, device=scaled.device)
    is_open = [row_limits.is_open for row_limits in limits]
    if any(is_open):
        rows = torch.tensor([row for row, is_row_open in enumerate(is_open) if is_row_open], device=scaled.device)
        ids[rows] = _invert(_select(scaled, rows).exp(), points[rows])
    pending = [row for row, is_row_open in enumerate(is_open) if not is_row_open]
    width = max([_FIRST_WIDTH, *(limits[row].top_k + 1 for row in pending)])
    while pending:
        rows = torch.tensor(pending, device=scaled.device)
        drawn, is_done = _draw_limited(_select(scaled, rows), [limits[row] for row in pending], points[rows], width)
        ids[rows] = drawn
        pending = [row for row, is_row_done in zip(pending, is_done.tolist(), strict=True) if not is_row_done]
        width *= _WIDER
    return ids


def _select(scaled: Tensor, rows: Tensor) -> Tensor:
    return scaled if len(rows) == len(scaled) else scaled[rows]


def _draw_limited(scaled: Tensor, limits: list[Limits], points: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Draw from the `width` likeliest tokens; also whether these were all that a row keeps."""
    width = min(width, scaled.shape[-1])
    values, ids = scaled.topk(width)
    threshold = _threshold(scaled, values, limits)
    is_done = (values[:, -1:] < threshold) | (width == scaled.shape[-1])
    is_kept = values >= threshold
    num_kept = int(is_kept.sum(-1).max())  # the kept ones stand first
    end = scaled.shape[-1]
    ids = ids[:, :num_kept].masked_fill(~is_kept[:, :num_kept], end).sort().values
    weights = scaled.gather(1, ids.clamp(max=end - 1)).exp().masked_fill_(ids == end, 0)
    return ids.gather(1, _invert(weights, points)[:, None])[:, 0], is_done[:, 0]


def _threshold(scaled: Tensor, values: Tensor, limits: list[Limits]) -> Tensor:
    """The lowest scaled logit that each row keeps, [rows, 1], in the order of transformers: top-k, top-p, min-p.

    It is right where it is above the last of `values`, the row's highest logits in descending order; else it is too
    low, and more values are needed.
    """
    width = values.shape[-1]
    top_k = torch.tensor([row.top_k for row in limits], device=scaled.device)[:, None]
    top_p = torch.tensor([row.top_p for row in limits], dtype=torch.float64, device=scaled.device)[:, None]
    min_p = torch.tensor([row.min_p for row in limits], dtype=torch.float64, device=scaled.device)[:, None]
    # 1. The k-th highest.
    has_top_k = (top_k > 0) & (top_k <= width)
    by_k = values.gather(1, (top_k - 1).clamp(0, width - 1)).masked_fill(~has_top_k, -torch.inf)
    # 2. The last one before which the mass, of what top-k kept, is still below top_p.
    weights = values.double().exp().masked_fill_(values < by_k, 0)
    mass = torch.where(has_top_k, weights.sum(-1, keepdim=True), _total(scaled))
    num_kept = (weights.cumsum(-1) - weights < top_p * mass).sum(-1, keepdim=True).clamp_(min=1)
    by_p = values.gather(1, num_kept - 1).masked_fill(top_p >= 1, -torch.inf)
    # 3. A share of the highest, which is exp(0).
    by_share = min_p.log().to(values.dtype)
    return torch.maximum(torch.maximum(by_k, by_p), by_share)


def _total(scaled: Tensor) -> Tensor:
    return scaled.exp().sum(-1, dtype=torch.float64, keepdim=True)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """The index at which the running sum of non-negative weights passes each row's share of the total."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums, points * sums[:, -1:], right=True)[:, 0]
