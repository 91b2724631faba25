"""The sampling parameters that chat and text completions share."""

import secrets
from collections.abc import Callable
from typing import Any

from gateway.dialects import fields
from gateway.dialects.fields import bad
from shared.messages import Sampling
from shared.names import JobClass

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_METADATA = 16

HONOURED = {
    "temperature": "0 to 2; 0 is greedy; not given: the model's own default",
    "top_p": "0 to 1",
    "top_k": "an extension; 0 or -1 is off",
    "min_p": "an extension; 0 to 1",
    "presence_penalty": "-2 to 2, over the output",
    "frequency_penalty": "-2 to 2, over the output",
    "repetition_penalty": "an extension; over prompt and output, as in transformers",
    "logit_bias": f"token ids to -100 … 100, at most {MAX_BIASES}",
    "seed": "every random number is a function of seed, choice and position",
    "stop": f"a string or up to {MAX_STOPS}; never part of the text",
    "stop_token_ids": "an extension",
    "ignore_eos": "an extension: go on to max_tokens",
    "n": f"1 to {MAX_CHOICES}",
}


def sampling(
    body: dict[str, Any],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    num_choices: int = 0,
    thinking_budget: int | None = None,
) -> Sampling:
    """The sampling of a body. `num_choices` in place of its own n. Raises InvalidRequest naming the field."""
    seed = fields.integer(body, "seed", -(2**63), 2**63 - 1)
    n = fields.integer(body, "n", 1, MAX_CHOICES) or 1
    # Most bodies hold one or two of these, and what is not there shall cost nothing.
    given = {name: value for name, read in _READERS.items() if name in body and (value := read(body)) is not None}
    return Sampling(
        n=num_choices or n,
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
        max_tokens=max_tokens,
        logprobs=logprobs,
        thinking_budget=thinking_budget,
        **given,
    )


def token_ids(value: object, where: str, most: int) -> list[int]:
    """A list of token ids, empty for null."""
    ids = fields.array({where: value}, where, most) or []
    for index, one in enumerate(ids):
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= MAX_TOKEN_ID:
            raise bad(f"{where}[{index}]", "must be a token id", one)
    return ids


def job_class(body: dict[str, Any]) -> JobClass:
    """`service_tier` flex and batch wait behind every interactive job; all other tiers are the one there is."""
    return "batch" if fields.string(body, "service_tier") in ("flex", "batch") else "interactive"


def metadata(body: dict[str, Any]) -> dict[str, str]:
    """Up to 16 pairs of strings."""
    given = fields.mapping(body, "metadata") or {}
    if len(given) > MAX_METADATA:
        raise bad("metadata", f"must have at most {MAX_METADATA} entries, and this has {len(given)}")
    for key, value in given.items():
        if len(key) > 64:
            raise bad("metadata", "must have keys of at most 64 characters", key)
        if not isinstance(value, str) or len(value) > 512:
            raise bad(f"metadata.{key}", "must be a string of at most 512 characters", value)
    return given


def _stop(body: dict[str, Any]) -> list[str]:
    value = body.get("stop")
    if isinstance(value, str):
        value = [value]
    elif value is not None and not isinstance(value, list):
        raise bad("stop", "must be a string or an array of strings", value)
    stops = fields.array({"stop": value}, "stop", MAX_STOPS) or []
    for index, one in enumerate(stops):
        if not fields.text(one, f"stop[{index}]"):
            raise bad(f"stop[{index}]", "must not be empty")
    return stops


def _logit_bias(body: dict[str, Any]) -> dict[int, float]:
    biases = fields.mapping(body, "logit_bias") or {}
    if len(biases) > MAX_BIASES:
        raise bad("logit_bias", f"must have at most {MAX_BIASES} entries, and this has {len(biases)}")
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
            raise bad("logit_bias", "must have token ids as keys", key)
    return {int(key): fields.number(biases, key, -100.0, 100.0, "logit_bias.") or 0.0 for key in biases}


def _top_k(body: dict[str, Any]) -> int | None:
    top_k = fields.integer(body, "top_k", -1, 2**31 - 1)
    return 0 if top_k == -1 else top_k


def _repetition_penalty(body: dict[str, Any]) -> float | None:
    repetition = fields.number(body, "repetition_penalty", 0.0, 10.0)
    if repetition == 0.0:
        raise bad("repetition_penalty", "must be above 0", 0)
    return repetition


# Fields of `Sampling` that a body names as such.
_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "temperature": lambda body: fields.number(body, "temperature", 0.0, 2.0),
    "top_p": lambda body: fields.number(body, "top_p", 0.0, 1.0),
    "top_k": _top_k,
    "min_p": lambda body: fields.number(body, "min_p", 0.0, 1.0),
    "repetition_penalty": _repetition_penalty,
    "presence_penalty": lambda body: fields.number(body, "presence_penalty", -2.0, 2.0),
    "frequency_penalty": lambda body: fields.number(body, "frequency_penalty", -2.0, 2.0),
    "logit_bias": _logit_bias,
    "stop": _stop,
    "stop_token_ids": lambda body: token_ids(body["stop_token_ids"], "stop_token_ids", MAX_BIASES),
    "ignore_eos": lambda body: fields.boolean(body, "ignore_eos"),
}
