"""Limits and defaults."""

from typing import Any

import pytest

from shared.messages import Job, Prompt, ResumeChoice, Sampling
from worker.front.errors import Unservable
from worker.front.request import Limits, defaults, resolve
from worker.text.checkpoint import GenerationDefaults

NEUTRAL = defaults({}, GenerationDefaults())
LIMITS = Limits(10, 100, (7, 8), NEUTRAL)


def job(resume: list[ResumeChoice] | None = None, **sampling: Any) -> Job:
    return Job(id="j", model="m", reply="r", prompt=Prompt(text=""), sampling=Sampling(**sampling), resume=resume or [])


def test_without_any_word_sampling_is_neutral() -> None:
    sample = resolve(job(seed=3), [1, 2], LIMITS).sample
    assert (sample.seed, sample.temperature, sample.top_p, sample.top_k, sample.min_p) == (3, 1.0, 1.0, 0, 0.0)
    assert (sample.max_tokens, sample.stop_ids) == (8, [7, 8])


def test_the_model_counts_only_when_it_samples() -> None:
    own = GenerationDefaults(do_sample=False, temperature=0.6, top_k=20)
    assert defaults({}, own) == NEUTRAL
    own = GenerationDefaults(do_sample=True, temperature=0.6, top_k=20)
    assert defaults({}, own) == NEUTRAL | {"temperature": 0.6, "top_k": 20}


def test_explicit_goes_before_catalogue_before_model() -> None:
    limits = Limits(10, 100, (), defaults({"temperature": 0.2, "top_p": 0.5}, GenerationDefaults(True, 0.6, 0.9, 20)))
    sample = resolve(job(temperature=0.0), [1], limits).sample
    assert (sample.temperature, sample.top_p, sample.top_k) == (0.0, 0.5, 20)


def test_the_catalogue_is_checked() -> None:
    with pytest.raises(Unservable, match="temprature"):
        defaults({"temprature": 1.0}, GenerationDefaults())
    with pytest.raises(Unservable, match="top_p"):
        defaults({"top_p": 3.0}, GenerationDefaults())


@pytest.mark.parametrize(("asked", "granted"), [(None, 7), (3, 3), (1000, 7)])
def test_max_tokens_is_what_the_context_leaves(asked: int | None, granted: int) -> None:
    assert resolve(job(max_tokens=asked), [1, 2, 3], LIMITS).sample.max_tokens == granted


def test_stop_ids() -> None:
    assert resolve(job(stop_token_ids=[9]), [1], LIMITS).sample.stop_ids == [7, 8, 9]
    assert resolve(job(stop_token_ids=[9], ignore_eos=True), [1], LIMITS).sample.stop_ids == [9]


def test_top_k_of_minus_one_is_off() -> None:
    assert resolve(job(top_k=-1), [1], LIMITS).sample.top_k == 0


def test_a_prompt_as_long_as_the_context_is_too_long() -> None:
    with pytest.raises(Unservable) as caught:
        resolve(job(), [1] * 10, LIMITS)
    assert caught.value.kind == "context_length_exceeded"
    assert str(caught.value) == (
        "This model's maximum context length is 10 tokens. However, your messages resulted in 10 tokens."
    )


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {100: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: 101.0}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_a_parameter_outside_its_range_is_named(sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(Unservable) as caught:
        resolve(job(**sampling), [1], LIMITS)
    assert (caught.value.kind, caught.value.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("resume", "n"), [([ResumeChoice([1])], 2), ([ResumeChoice([100])], 1), ([ResumeChoice([]), ResumeChoice([])], 1)]
)
def test_a_resume_must_fit_the_job(resume: list[ResumeChoice], n: int) -> None:
    with pytest.raises(Unservable) as caught:
        resolve(job(resume, n=n), [1], LIMITS)
    assert caught.value.param == "resume"


@pytest.mark.parametrize("prompt", [[], [100], [-1]])
def test_a_prompt_has_ids_of_the_vocabulary(prompt: list[int]) -> None:
    with pytest.raises(Unservable) as caught:
        resolve(job(), prompt, LIMITS)
    assert caught.value.param == "prompt"
