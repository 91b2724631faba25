# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# ruff: noqa: SIM102 (a condition that is known when a kernel is compiled stands by itself)
"""Choosing tokens as Triton kernels, without a sort.

A token is kept when it is near enough to its row's highest. How near is found bit by bit: the distance of a scaled
logit to the highest is never negative, so the bits of the float order as the number does. Of all limits L, the largest
is wanted for which the tokens nearer than L weigh less than a target: for top-k each weighs one and the target is k,
for top-p each weighs its probability. One pass over the vocabulary tries fifteen limits, so eight passes find all 31
bits.

The vocabulary is divided among programs; each leaves its part of a sum in memory, and every program of the next pass
adds the parts up in the same order. So results do not depend on timing or on the rows beside.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.choosing import NOT_FINITE

_BLOCK = 1024
_BLOCKS = 8  # of a program
_SHIFTS = (27, 23, 19, 15, 11, 7, 3, 0)
_EVERYTHING = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _peaks(logits, peaks, tokens, size, num_splits, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for block in range(BLOCKS):
        token = (split * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(logits + row * size + token, mask=token < size, other=float("-inf")).to(tl.float32)
        value = tl.where(value == value, value, float("inf"))  # what is no number counts as infinite
        is_higher = value > highest
        where = tl.where(is_higher, token, where)
        highest = tl.where(is_higher, value, highest)
    peak = tl.max(highest, 0)
    first = tl.min(tl.where(highest == peak, where, _EVERYTHING), 0)
    tl.store(peaks + row * num_splits + split, peak)
    tl.store(tokens + row * num_splits + split, first)


@triton.jit
def _highest(peaks, row, num_splits, SPLITS: tl.constexpr):
    lane = tl.arange(0, SPLITS)
    return tl.max(tl.load(peaks + row * num_splits + lane, mask=lane < num_splits, other=float("-inf")), 0)


@triton.jit
def _distances(logits, row, token, size, highest, temperature):
    """Of tokens to the highest, as the bits of a float32; the mask of those that there are."""
    value = tl.load(logits + row * size + token, mask=token < size, other=float("-inf")).to(tl.float32)
    scaled = tl.div_rn(value - highest, temperature)
    return scaled, scaled.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _temperature(settings, row, num_rows):
    heat = tl.load(settings + num_rows + row).to(tl.float32)
    return tl.where(heat > 0, heat, 1.0)


@triton.jit
def _target(settings, sums, row, num_rows, size, IS_MASS: tl.constexpr):
    """What the tokens nearer than the limit have to stay below."""
    if IS_MASS:
        share = tl.load(settings + 3 * num_rows + row)
        target = tl.where(share >= 1, float("inf"), share * tl.sum(tl.where(tl.arange(0, 16) == 0, sums, 0.0), 0))
    else:
        count = tl.load(settings + 2 * num_rows + row)
        target = tl.where((count > 0) & (count <= size), count, float("inf"))
    return target


@triton.jit
def _resolve(
    settings, parts, limits, row, num_rows, num_splits, size, shift, STEP: tl.constexpr, WIDTH: tl.constexpr,
    IS_MASS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The limit that the pass `STEP` has led to; before the first, 0."""
    limit = tl.load(limits + STEP * num_rows + row)
    lane = tl.arange(0, SPLITS)
    column = tl.arange(0, 16)
    part = tl.load(
        parts + (row * num_splits + lane[:, None]) * 16 + column[None, :],
        mask=(lane < num_splits)[:, None],
        other=0.0,
    )
    sums = tl.sum(part, 0)
    target = _target(settings, sums, row, num_rows, size, IS_MASS)
    below = (sums < target) & (column > 0) & (column < WIDTH)
    return limit + (tl.sum(below.to(tl.int32), 0) << shift)


@triton.jit
def _tally(
    logits, peaks, settings, before, parts, limits, allowed, size, num_rows, num_splits, last_shift, shift,
    STEP: tl.constexpr, LAST_WIDTH: tl.constexpr, IS_MASS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    limit = tl.zeros([], tl.int32)
    if STEP > 0:
        limit = _resolve(
            settings, before, limits, row, num_rows, num_splits, size, last_shift, STEP - 1, LAST_WIDTH, IS_MASS, SPLITS
        )
    if split == 0:
        tl.store(limits + STEP * num_rows + row, limit)
    column = tl.arange(0, 16)
    tries = limit + (column << shift)
    highest = _highest(peaks, row, num_splits, SPLITS)
    temperature = _temperature(settings, row, num_rows)
    most = _EVERYTHING
    if IS_MASS:
        most = tl.load(allowed + row)
    sums = tl.zeros([16], tl.float64)
    for block in range(BLOCKS):
        token = (split * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        scaled, bits = _distances(logits, row, token, size, highest, temperature)
        if IS_MASS:
            weight = tl.where((token < size) & (bits <= most), tl.exp(scaled), 0.0).to(tl.float64)
        else:
            weight = (token < size).to(tl.float64)
        is_near = bits[None, :] < tries[:, None]
        if IS_MASS:  # the first column has no limit: it is the sum of all
            is_near = is_near | (column == 0)[:, None]
        sums += tl.sum(tl.where(is_near, weight[None, :], 0.0), 1)
    tl.store(parts + (row * num_splits + split) * 16 + column, sums)


@triton.jit
def _settle(
    settings, parts, limits, allowed, num_rows, num_splits, size, shift, STEP: tl.constexpr, WIDTH: tl.constexpr,
    IS_MASS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The search is over: what it found bounds what is allowed, or begins it."""
    row = tl.program_id(0).to(tl.int64)
    limit = _resolve(settings, parts, limits, row, num_rows, num_splits, size, shift, STEP, WIDTH, IS_MASS, SPLITS)
    if IS_MASS:
        limit = tl.minimum(limit, tl.load(allowed + row))
        distance = tl.load(settings + 4 * num_rows + row).to(tl.float32)
        limit = tl.minimum(limit, distance.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(allowed + row, limit)


@triton.jit
def _weigh(
    logits, peaks, settings, allowed, masses, size, num_rows, num_splits,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    highest = _highest(peaks, row, num_splits, SPLITS)
    temperature = _temperature(settings, row, num_rows)
    most = tl.load(allowed + row)
    mass = tl.zeros([], tl.float64)
    for block in range(BLOCKS):
        token = (split * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        scaled, bits = _distances(logits, row, token, size, highest, temperature)
        mass += tl.sum(tl.where((token < size) & (bits <= most), tl.exp(scaled), 0.0).to(tl.float64), 0)
    tl.store(masses + row * num_splits + split, mass)


@triton.jit
def _pick(
    logits, peaks, tokens, settings, allowed, masses, out, size, num_rows, num_splits, NONE: tl.constexpr,
    IS_RANDOM: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SPLITS)
    is_split = lane < num_splits
    peak = tl.load(peaks + row * num_splits + lane, mask=is_split, other=float("-inf"))
    highest = tl.max(peak, 0)
    first = tl.load(tokens + row * num_splits + lane, mask=is_split, other=0)
    chosen = tl.min(tl.where((peak == highest) & is_split, first, _EVERYTHING), 0)
    is_finite = (highest < float("inf")) & (highest > float("-inf"))
    if IS_RANDOM:
        if is_finite & (tl.load(settings + num_rows + row) > 0):
            mass = tl.load(masses + row * num_splits + lane, mask=is_split, other=0.0)
            point = tl.load(settings + row) * tl.sum(mass, 0)
            sums = tl.cumsum(mass, 0)
            last = tl.max(tl.where(mass > 0, lane, 0), 0)
            split = tl.minimum(tl.sum((sums <= point).to(tl.int32), 0), last)
            running = tl.sum(tl.where(lane < split, mass, 0.0), 0)
            temperature = _temperature(settings, row, num_rows)
            most = tl.load(allowed + row)
            found = _EVERYTHING
            latest = -1
            for block in range(BLOCKS):
                token = (split * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
                scaled, bits = _distances(logits, row, token, size, highest, temperature)
                weight = tl.where((token < size) & (bits <= most), tl.exp(scaled), 0.0).to(tl.float64)
                passed = (running + tl.cumsum(weight, 0) > point) & (weight > 0)
                found = tl.minimum(found, tl.min(tl.where(passed, token, _EVERYTHING), 0))
                latest = tl.maximum(latest, tl.max(tl.where(weight > 0, token, -1), 0))
                running += tl.sum(weight, 0)
            chosen = tl.where(found == _EVERYTHING, latest, found)  # sums in another order may fall short of the point
    tl.store(out + row, tl.where(is_finite, chosen, NONE))


class TritonChoose:
    """See `worker.engine.cuda.choosing.Choose`."""

    name = "triton"

    def __call__(self, logits: Tensor, settings: Tensor, *, is_random: bool) -> Tensor:
        """See Choose."""
        logits = logits.contiguous()
        settings = settings.contiguous()
        rows, size = logits.shape
        splits = triton.cdiv(size, _BLOCK * _BLOCKS)
        device = logits.device
        peaks = torch.empty(rows, splits, dtype=torch.float32, device=device)
        tokens = torch.empty(rows, splits, dtype=torch.int32, device=device)
        out = torch.empty(rows, dtype=torch.int32, device=device)
        grid = (rows, splits)
        cut = {"BLOCK": _BLOCK, "BLOCKS": _BLOCKS}
        lanes = {"SPLITS": triton.next_power_of_2(splits)}
        _peaks[grid](logits, peaks, tokens, size, splits, **cut)
        allowed, masses = tokens, peaks
        if is_random:
            allowed = torch.empty(rows, dtype=torch.int32, device=device)
            masses = torch.empty(rows, splits, dtype=torch.float64, device=device)
            parts = torch.empty(2, rows, splits, 16, dtype=torch.float64, device=device)
            limits = torch.empty(len(_SHIFTS), rows, dtype=torch.int32, device=device)
            sizes = (size, rows, splits)
            for is_mass in (False, True):
                last, width = 0, 16
                for step, shift in enumerate(_SHIFTS):
                    now, before = parts[step % 2], parts[1 - step % 2]
                    _tally[grid](
                        logits, peaks, settings, before, now, limits, allowed, *sizes, last, shift,
                        STEP=step, LAST_WIDTH=16, IS_MASS=is_mass, **lanes, **cut,
                    )  # fmt: skip
                    last, width = shift, 8 if shift == 0 else 16
                _settle[rows,](
                    settings, parts[(len(_SHIFTS) - 1) % 2], limits, allowed, rows, splits, size, last,
                    STEP=len(_SHIFTS) - 1, WIDTH=width, IS_MASS=is_mass, **lanes,
                )  # fmt: skip
            _weigh[grid](logits, peaks, settings, allowed, masses, *sizes, **lanes, **cut)
        _pick[rows,](
            logits, peaks, tokens, settings, allowed, masses, out, size, rows, splits, NONE=NOT_FINITE,
            IS_RANDOM=is_random, **lanes, **cut,
        )  # fmt: skip
        return out
