"""Choosing tokens on the device: what `worker.engine.draw` does, without asking the host on the way.

Random numbers are made on the host, by the same function as everywhere, and come with the other settings of a row; so
a job's tokens are the same whichever way they are chosen, but for the last bits of sums.
"""

import functools
import importlib
import importlib.util
import math
from typing import Protocol

import torch
from torch import Tensor

from shared import log
from worker.engine.draw import uniform
from worker.protocol import Sample

_log = log.get(__name__)
NUM_SETTINGS = 5
"""Of a row, in this order: random number, temperature, top-k, top-p, and how far below the highest min-p allows."""
NOT_FINITE = -1


class Choose(Protocol):
    """Chooses a token for each row."""

    name: str

    def __call__(self, logits: Tensor, settings: Tensor, *, is_random: bool) -> Tensor:
        """int32 [rows]: a token, or NOT_FINITE where a row's highest logit is not a number.

        Args:
            logits: [rows, vocabulary].
            settings: float64 [NUM_SETTINGS, rows].
            is_random: some row's temperature is above 0; else settings are not looked at.
        """
        ...


def settings_of(sample: Sample, choice: int, position: int) -> tuple[float, float, float, float, float]:
    """The settings of a row whose next token is at `position` of this choice's output."""
    if sample.temperature <= 0:
        return 0.0, 0.0, 0.0, 1.0, math.inf
    distance = -math.log(sample.min_p) if sample.min_p > 0 else math.inf
    number = uniform(sample.seed, choice, position)
    return number, sample.temperature, float(sample.top_k), sample.top_p, distance


class TorchChoose:
    """In torch operations, with a sort: the reference, and what works everywhere."""

    name = "torch"

    def __call__(self, logits: Tensor, settings: Tensor, *, is_random: bool) -> Tensor:
        """See Choose."""
        logits = logits.float()
        highest, best = logits.max(-1)
        if is_random:
            best = torch.where(settings[1] > 0, _draw(logits - highest[:, None], settings), best)
        return torch.where(highest.isfinite(), best, NOT_FINITE).int()


def _draw(logits: Tensor, settings: Tensor) -> Tensor:
    numbers, temperatures, top_k, top_p, distance = (column[:, None] for column in settings)
    temperatures = torch.where(temperatures > 0, temperatures, 1.0).float()
    scaled = logits / temperatures
    values = scaled.sort(-1, descending=True).values
    size = values.shape[-1]
    has_top_k = (top_k > 0) & (top_k <= size)
    by_k = values.gather(1, (top_k.long() - 1).clamp(0, size - 1)).masked_fill(~has_top_k, -torch.inf)
    weights = values.double().exp().masked_fill(values < by_k, 0)
    num_kept = (weights.cumsum(-1) - weights < top_p * weights.sum(-1, keepdim=True)).sum(-1, keepdim=True)
    by_p = values.gather(1, num_kept.clamp(min=1) - 1).masked_fill(top_p >= 1, -torch.inf)
    limit = torch.maximum(torch.maximum(by_k, by_p), -distance.float())
    kept = torch.where(scaled >= limit, scaled.exp(), 0).double()
    sums = kept.cumsum(-1)
    return torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0].clamp_(max=size - 1)


@functools.cache
def choose_chooser(device: torch.device, vocab_size: int, *, use_triton: bool = True) -> Choose:
    """Triton's kernels if they are there, allowed and right; else torch."""
    if not use_triton:
        return TorchChoose()
    if not importlib.util.find_spec("triton"):
        _log.warning("sampler.chosen", kind="torch", reason="Triton is not installed")
        return TorchChoose()
    try:
        faster: Choose = importlib.import_module("worker.engine.cuda.triton_sampler").TritonChoose()
        if not agrees(faster, device, vocab_size):
            raise ArithmeticError("it chooses other tokens")
    except Exception as failure:
        _log.warning("sampler.left_out", kind="triton", reason=f"{type(failure).__name__}: {failure}"[:200])
        return TorchChoose()
    _log.info("sampler.chosen", kind="triton")
    return faster


@torch.inference_mode()
def agrees(chooser: Choose, device: torch.device, vocab_size: int) -> bool:
    """Whether it chooses as torch does on random logits, with every kind of limit, alone and together."""
    rows = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 7, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (0.9, 0, 1.0, 0.05)]
    rows += [(2.0, 40, 0.9, 0.01), (1e-3, 5, 0.5, 0.0), (1.0, vocab_size + 1, 0.999, 0.0)]
    samples = [
        Sample(seed=11, max_tokens=1, temperature=heat, top_k=top_k, top_p=top_p, min_p=min_p)
        for heat, top_k, top_p, min_p in rows
    ]
    columns = [settings_of(sample, number, 3) for number, sample in enumerate(samples)]
    settings = torch.tensor(columns, dtype=torch.float64, device=device).T.contiguous()
    generator = torch.Generator().manual_seed(8)
    logits = (torch.randn(len(rows), vocab_size, generator=generator) * 3).to(device)
    logits[0, 5] = torch.inf if vocab_size > 5 else 0
    for is_random in (False, True):
        ours = chooser(logits, settings, is_random=is_random)
        theirs = TorchChoose()(logits, settings, is_random=is_random)
        if not torch.equal(ours, theirs):
            return False
    return True
