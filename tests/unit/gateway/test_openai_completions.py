"""Completion and embedding bodies to requests: what each field means, and how each wrong one is refused."""

from typing import Any

import pytest

from gateway.dialects import openai_completions, openai_embeddings
from gateway.errors import ApiError
from gateway.request import InferenceRequest
from shared.messages import Prompt


def complete(**fields: Any) -> InferenceRequest:
    return openai_completions.parse({"model": "m", "prompt": "x", **fields}, {})


def embed(**fields: Any) -> InferenceRequest:
    return openai_embeddings.parse({"model": "m", "input": "x", **fields}, {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", [Prompt(text="a")]),
        ([1, 2], [Prompt(ids=[1, 2])]),
        (["a", "b"], [Prompt(text="a"), Prompt(text="b")]),
        ([[1], [2, 3]], [Prompt(ids=[1]), Prompt(ids=[2, 3])]),
        (["a", [1]], [Prompt(text="a"), Prompt(ids=[1])]),
    ],
)
def test_texts_and_token_ids(given: Any, expected: list[Prompt]) -> None:
    request = complete(prompt=given)
    assert [request.prompt, *request.further] == expected
    assert list(embed(input=given).inputs) == expected


def test_the_best_needs_log_probabilities() -> None:
    request = complete(n=2, best_of=4)
    assert (request.sampling.n, request.sampling.logprobs) == (4, 0)
    assert (request.notes.n, request.notes.made, request.notes.with_logprobs) == (2, 4, False)
    assert complete(n=2, best_of=2).sampling.logprobs is None
    assert complete(logprobs=3).sampling.logprobs == 3


BAD: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": {}}),
    ("prompt", {"prompt": "a\0"}),
    ("prompt", {"prompt": ["a"] * 129}),
    ("prompt[0]", {"prompt": [1, -1][1:]}),
    ("prompt[1]", {"prompt": [1, "a"]}),
    ("prompt[1]", {"prompt": ["a", []]}),
    ("prompt[1]", {"prompt": ["a", 5]}),
    ("prompt[0][1]", {"prompt": [[1, True]]}),
    ("suffix", {"suffix": "x"}),
    ("echo", {"echo": 1}),
    ("echo", {"echo": True, "logprobs": 0}),
    ("echo", {"echo": True, "prompt": [1]}),
    ("best_of", {"n": 3, "best_of": 2}),
    ("best_of", {"best_of": 2, "stream": True}),
    ("logprobs", {"logprobs": True}),
    ("logprobs", {"logprobs": 21}),
    ("max_tokens", {"max_tokens": 0}),
]


@pytest.mark.parametrize(("param", "fields"), BAD, ids=str)
def test_a_bad_field_is_named(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        complete(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_floats_unless_asked_for() -> None:
    assert not embed().notes.as_base64
    assert embed(encoding_format="base64").notes.as_base64


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("input", {"input": None}),
        ("input", {"input": ""}),
        ("input", {"input": []}),
        ("input[1]", {"input": ["a", ""]}),
        ("input", {"input": ["a"] * 2049}),
        ("dimensions", {"dimensions": 0}),
        ("encoding_format", {"encoding_format": "int8"}),
        ("stream", {"stream": True}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 5}),
    ],
    ids=str,
)
def test_a_bad_field_of_an_embedding_is_named(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        embed(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
