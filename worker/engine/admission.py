"""What cannot run here at all, and why."""

import math
import sys
from dataclasses import dataclass

from worker.protocol import Refused, Sample, Submit

_MOST, _LEAST = sys.float_info.max, math.ulp(0.0)  # finite; above 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sequence may be."""

    vocab_size: int
    context_limit: int  # tokens of prompt and output together
    cache_tokens: int  # tokens that the whole cache holds


def refusal(job: Submit, limits: Limits) -> Refused | None:
    """Why this job cannot run, or None if it can."""
    if problem := _find_problem(job, limits):
        return Refused(job.key, "invalid_request", problem)
    num_prompt = len(job.prompt)
    if num_prompt >= limits.context_limit:
        return Refused(
            job.key,
            "context_length_exceeded",
            f"This model's maximum context length is {limits.context_limit} tokens. "
            f"However, your messages resulted in {num_prompt} tokens.",
        )
    # The last token of a sequence is never computed, so it needs no room.
    needed = min(num_prompt + job.sample.max_tokens, limits.context_limit) - 1
    if needed > limits.cache_tokens:
        return Refused(
            job.key,
            "capacity",
            f"A prompt of {num_prompt} tokens with up to {job.sample.max_tokens} new ones needs a cache of {needed} "
            f"tokens; this replica has {limits.cache_tokens}. Ask for fewer tokens, or give the replica more memory.",
        )
    return None


def _find_problem(job: Submit, limits: Limits) -> str | None:
    if not job.prompt:
        return "The prompt is empty."
    indexes = [choice.index for choice in job.choices]
    if not indexes or len(set(indexes)) != len(indexes) or min(indexes) < 0:
        return f"The choices must be one or more different numbers from 0 on, not {indexes}."
    for ids in (job.prompt, *(choice.resume for choice in job.choices)):
        if ids and (min(ids) < 0 or max(ids) >= limits.vocab_size):
            wrong = next(token for token in ids if not 0 <= token < limits.vocab_size)
            return f"Token id {wrong} is outside the model's vocabulary of {limits.vocab_size}."
    return _find_sample_problem(job.sample, limits)


def _find_sample_problem(sample: Sample, limits: Limits) -> str | None:
    ranges: tuple[tuple[str, float, float, float, str], ...] = (
        ("max_tokens", sample.max_tokens, 1, _MOST, "at least 1"),
        ("temperature", sample.temperature, 0, _MOST, "at least 0"),
        ("top_p", sample.top_p, _LEAST, 1, "above 0 and at most 1"),
        ("top_k", sample.top_k, 0, _MOST, "at least 0"),
        ("min_p", sample.min_p, 0, 1, "from 0 to 1"),
        ("repetition_penalty", sample.repetition_penalty, _LEAST, _MOST, "above 0"),
        ("presence_penalty", sample.presence_penalty, -_MOST, _MOST, "finite"),
        ("frequency_penalty", sample.frequency_penalty, -_MOST, _MOST, "finite"),
        ("logprobs", sample.logprobs or 0, 0, _MOST, "at least 0"),
    )
    for name, value, low, high, expected in ranges:
        if not low <= value <= high:
            return f"{name} must be {expected}, not {value}."
    for token, bias in sample.logit_bias.items():
        if not 0 <= token < limits.vocab_size:
            return f"logit_bias names token id {token}, outside the model's vocabulary of {limits.vocab_size}."
        if not math.isfinite(bias):
            return f"logit_bias of token id {token} must be finite, not {bias}."
    return None
