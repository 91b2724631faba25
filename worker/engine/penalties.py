"""Repetition, presence and frequency penalties and logit bias: sparse changes to the logits of a row."""

import torch
from torch import Tensor

from worker.engine.sequence import Turn


def has_penalties(sequence: Turn) -> bool:
    """Whether `apply_penalties` would change anything."""
    sample = sequence.sample
    return bool(
        sample.repetition_penalty != 1.0 or sample.presence_penalty or sample.frequency_penalty or sample.logit_bias
    )


def apply_penalties(logits: Tensor, sequence: Turn) -> None:
    """Change one row of float32 logits in place.

    1. Repetition, as transformers does it: tokens of prompt and output, positive logits divided, negative multiplied.
    2. Presence and frequency, as OpenAI defines them: subtracted, by how often a token is in the output.
    3. Logit bias: added.
    """
    sample = sequence.sample
    if sample.repetition_penalty != 1.0:
        seen = _to_tensor(sequence.token_counts(), logits)
        values = logits[seen]
        logits[seen] = torch.where(values < 0, values * sample.repetition_penalty, values / sample.repetition_penalty)
    if sample.presence_penalty or sample.frequency_penalty:
        counts = {token: count for token, count in sequence.token_counts().items() if count}
        if counts:
            times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
            logits[_to_tensor(counts, logits)] -= sample.presence_penalty + sample.frequency_penalty * times
    if sample.logit_bias:
        bias = torch.tensor(list(sample.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits[_to_tensor(sample.logit_bias, logits)] += bias


def _to_tensor(tokens: dict[int, int] | dict[int, float], like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=like.device)
