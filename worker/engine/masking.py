"""Masks onto logits: what a grammar does not allow becomes impossible."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.engine.grammar import MaskMaker, Masks, Matcher
from worker.engine.sequence import Turn

_MAX_THREADS = 8


def apply_grammars(logits: Tensor, turns: Sequence[Turn]) -> None:
    """Set the logits of tokens that a turn's grammar forbids to minus infinity, in place.

    On a device the masks are computed while it is still busy with the forward pass: nothing before this waits for it.
    """
    constrained = [(row, turn.grammar) for row, turn in enumerate(turns) if turn.grammar is not None]
    if constrained:
        matchers: list[Matcher] = [matcher for _, matcher in constrained]
        masks = _maker().make(matchers, logits.shape[-1])
        apply_masks(logits, [row for row, _ in constrained], masks)


def apply_masks(logits: Tensor, rows: list[int], masks: Masks) -> None:
    """Apply packed masks to these rows of logits [rows, vocabulary], in place."""
    size = logits.shape[-1]
    if logits.device.type == "cpu":
        for row, mask in zip(rows, masks, strict=True):
            allowed = np.unpackbits(mask.view(np.uint8), count=size, bitorder="little")
            logits[row].masked_fill_(torch.from_numpy(allowed).bool().logical_not_(), -torch.inf)
        return
    packed = torch.from_numpy(masks).to(logits.device, non_blocking=True)
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    forbidden = ((packed[:, :, None] >> bits) & 1).view(len(rows), -1)[:, :size] == 0
    chosen = torch.tensor(rows, device=logits.device)
    logits[chosen] = logits[chosen].masked_fill_(forbidden, -torch.inf)


@functools.cache
def _maker() -> MaskMaker:
    return MaskMaker(threads=min(_MAX_THREADS, torch.get_num_threads()))
