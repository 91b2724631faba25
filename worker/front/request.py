"""From a job to what the rank runs: every limit checked, every default resolved. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from shared.messages import Job, ResumeChoice, Sampling
from worker.front.errors import Unservable
from worker.protocol import Image, Sample
from worker.text.checkpoint import GenerationDefaults

MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
MAX_REPETITION_PENALTY = 10.0

_DEFAULTABLE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Limits(Struct, frozen=True):
    """What this replica can do, once its rank is ready."""

    context_limit: int  # tokens of one sequence, prompt and completion together
    vocab_size: int
    eos_ids: tuple[int, ...]
    defaults: Mapping[str, Any]  # of `defaults`


class Resolved(Struct, frozen=True):
    """A job that can run."""

    prompt: list[int]
    sample: Sample
    resume: list[ResumeChoice]  # one per choice
    grammar: str = ""  # that every choice is held to
    images: list[Image] = []


def defaults(catalogue: Mapping[str, Any], generation: GenerationDefaults) -> dict[str, Any]:
    """Sampling where a job says nothing: the catalogue's, else the model's own if it samples at all, else neutral.

    Raises Unservable for catalogue values outside their range or of unknown names.
    """
    resolved: dict[str, Any] = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": None,
    }  # fmt: skip
    if unknown := sorted(set(catalogue) - set(resolved)):
        known = ", ".join(resolved)
        raise Unservable("invalid_request", f"The catalogue sets unknown sampling defaults {unknown}; known: {known}.")
    if generation.do_sample:
        own = {name: getattr(generation, name) for name in _DEFAULTABLE}
        resolved.update({name: value for name, value in own.items() if value is not None})
    resolved.update(catalogue)
    check(Sampling(**resolved), vocab_size=0)
    return resolved


def check(sampling: Sampling, *, vocab_size: int) -> None:
    """Raises Unservable naming the first parameter outside its range."""
    for name, low, high, value in (
        ("n", 1, MAX_CHOICES, sampling.n),
        ("max_tokens", 1, None, sampling.max_tokens),
        ("temperature", 0, 2, sampling.temperature),
        ("top_p", 0, 1, sampling.top_p),
        ("top_k", -1, None, sampling.top_k),
        ("min_p", 0, 1, sampling.min_p),
        ("repetition_penalty", 0, MAX_REPETITION_PENALTY, sampling.repetition_penalty),
        ("presence_penalty", -2, 2, sampling.presence_penalty),
        ("frequency_penalty", -2, 2, sampling.frequency_penalty),
        ("logprobs", 0, MAX_LOGPROBS, sampling.logprobs),
        ("thinking_budget", 1, None, sampling.thinking_budget),
        *(("logit_bias", -100, 100, bias) for bias in sampling.logit_bias.values()),
    ):
        # Written so that a number that is none of them is refused too.
        if value is not None and not (value >= low and (high is None or value <= high)):
            rule = f"at least {low}" if high is None else f"between {low} and {high}"
            raise Unservable("invalid_request", f"{name} must be {rule}, not {value}.", name)
    if sampling.repetition_penalty == 0:
        raise Unservable("invalid_request", "repetition_penalty must be above 0.", "repetition_penalty")
    if len(sampling.stop) > MAX_STOP_STRINGS or not all(sampling.stop):
        raise Unservable("invalid_request", f"stop takes up to {MAX_STOP_STRINGS} strings, none empty.", "stop")
    _token_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _token_ids("logit_bias", sampling.logit_bias, vocab_size)


def resolve(
    job: Job, prompt: list[int], limits: Limits, grammar: str = "", images: list[Image] | None = None
) -> Resolved:
    """The job as the rank runs it. Raises Unservable.

    What is held to a grammar ends where the grammar does, so `ignore_eos` means nothing there.
    """
    sampling = job.sampling
    check(sampling, vocab_size=limits.vocab_size)
    if not prompt:
        raise Unservable("invalid_request", "The prompt is empty.", "prompt")
    _token_ids("prompt", prompt, limits.vocab_size)
    if len(prompt) >= limits.context_limit:
        raise too_long(len(prompt), limits.context_limit, "messages" if job.prompt.messages is not None else "prompt")
    resume = job.resume or [ResumeChoice([]) for _ in range(sampling.n)]
    if len(resume) != sampling.n:
        raise Unservable("invalid_request", f"resume has {len(resume)} choices, not {sampling.n}.", "resume")
    for choice in resume:
        _token_ids("resume", choice.ids, limits.vocab_size)
    if grammar:
        sampling = msgspec.structs.replace(sampling, ignore_eos=False)
    return Resolved(
        prompt, _sample(sampling, limits, limits.context_limit - len(prompt)), resume, grammar, images or []
    )


def too_long(tokens: int, limit: int, param: str, what: str = "your messages resulted in") -> Unservable:
    """The refusal of a prompt of so many tokens, in the words that clients look for."""
    return Unservable(
        "context_length_exceeded",
        f"This model's maximum context length is {limit} tokens. However, {what} {tokens} tokens.",
        param,
        tokens=tokens,
        limit=limit,
    )


def reserve(sampling: Sampling, limit: int) -> int:
    """Tokens of the context that a prompt which is shortened leaves to the answer: what it may need, to a quarter."""
    return max(1, min(sampling.max_tokens or limit, limit // 4))


def _sample(sampling: Sampling, limits: Limits, room: int) -> Sample:
    defaults = limits.defaults
    max_tokens = defaults["max_tokens"] if sampling.max_tokens is None else sampling.max_tokens
    top_k = defaults["top_k"] if sampling.top_k is None else sampling.top_k
    repetition = sampling.repetition_penalty
    return Sample(
        seed=sampling.seed,
        max_tokens=room if max_tokens is None else min(max_tokens, room),
        temperature=defaults["temperature"] if sampling.temperature is None else sampling.temperature,
        top_p=defaults["top_p"] if sampling.top_p is None else sampling.top_p,
        top_k=max(top_k, 0),
        min_p=defaults["min_p"] if sampling.min_p is None else sampling.min_p,
        repetition_penalty=defaults["repetition_penalty"] if repetition is None else repetition,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        stop_ids=[*(() if sampling.ignore_eos else limits.eos_ids), *sampling.stop_token_ids],
        logprobs=sampling.logprobs,
    )


def _token_ids(name: str, ids: Any, vocab_size: int) -> None:
    """Every id must be in the vocabulary; its size is 0 when not known yet."""
    if vocab_size and ids and not 0 <= (low := min(ids)) <= (high := max(ids)) < vocab_size:
        wrong = low if low < 0 else high
        raise Unservable("invalid_request", f"{name}: token id {wrong} is outside 0 … {vocab_size - 1}.", name)
