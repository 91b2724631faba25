"""From logits to tokens, each row by its own job's sampling parameters.

Log probabilities are those of the model: before penalties, bias, grammar and temperature.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.draw import Limits, draw, uniform
from worker.engine.errors import NotFinite
from worker.engine.masking import apply_grammars
from worker.engine.penalties import apply_penalties, has_penalties
from worker.engine.plan import Sampled
from worker.engine.sequence import Turn
from worker.protocol import ChoiceLogprob


def sample(logits: Tensor, sequences: Sequence[Turn]) -> list[Sampled]:
    """One token for each row of logits [rows, vocabulary], which may be overwritten.

    The order is that of transformers: penalties, grammar, temperature, top-k, top-p, min-p. So a bias or a penalty can
    make the model prefer one allowed token to another, and nothing can make it choose one that is not; and top-k and
    its kind count among the allowed ones alone.

    Raises:
        NotFinite: a row's highest logit is not a number.
    """
    logits = logits.float()
    rows_with_logprobs = [row for row, sequence in enumerate(sequences) if sequence.sample.logprobs is not None]
    log_probs = {row: logits[row].log_softmax(-1) for row in rows_with_logprobs}
    for row, sequence in enumerate(sequences):
        if has_penalties(sequence):
            apply_penalties(logits[row], sequence)
    apply_grammars(logits, sequences)
    highest, best = logits.max(-1)
    if not bool(highest.isfinite().all()):
        raise NotFinite
    ids = best.tolist()
    random_rows = [row for row, sequence in enumerate(sequences) if sequence.sample.temperature > 0]
    if random_rows:
        drawn = _draw(logits, highest, sequences, random_rows)
        for row, token in zip(random_rows, drawn, strict=True):
            ids[row] = token
    sampled = []
    for row, (token, sequence) in enumerate(zip(ids, sequences, strict=True)):
        num_top = sequence.sample.logprobs
        sampled.append(Sampled(token, None if num_top is None else _logprob(log_probs[row], token, num_top)))
    return sampled


def _draw(logits: Tensor, highest: Tensor, sequences: Sequence[Turn], rows: list[int]) -> list[int]:
    if len(rows) < len(sequences):
        chosen = torch.tensor(rows, device=logits.device)
        logits, highest = logits[chosen], highest[chosen]
    samples = [sequences[row].sample for row in rows]
    temperatures = torch.tensor([sample.temperature for sample in samples], device=logits.device)
    # The highest is taken off first, so that no temperature, however small, gives an infinite one.
    scaled = (logits - highest[:, None]) / temperatures[:, None]
    limits = [Limits(sample.top_k, sample.top_p, sample.min_p) for sample in samples]
    uniforms = [uniform(sequences[row].sample.seed, sequences[row].choice, sequences[row].num_output) for row in rows]
    ids: list[int] = draw(scaled, limits, uniforms).tolist()
    return ids


def _logprob(log_probs: Tensor, token: int, num_top: int) -> ChoiceLogprob:
    values, ids = log_probs.topk(min(num_top, len(log_probs)))
    return ChoiceLogprob(token, float(log_probs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
