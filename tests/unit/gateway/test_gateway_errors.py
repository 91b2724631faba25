"""Errors: status, type and code of each, and what a client reads."""

import re
from typing import get_args

import orjson
import pytest

from gateway import errors
from shared.messages import FailureKind

EVERY = [
    errors.InvalidRequest("m", param="p"),
    errors.NotSupported("m", param="p"),
    errors.ContextLengthExceeded("m"),
    errors.NotFound("m"),
    errors.MethodNotAllowed("m"),
    errors.ModelNotFound("x", ["y"]),
    errors.BodyTooLarge(2, 1),
    errors.JobTooLarge(2, 1),
    errors.CapacityExceeded("m"),
    errors.UnsupportedMediaType("m"),
    errors.QueueFull("m", 3),
    errors.SlowClient(3),
    errors.EngineFailed("m"),
    errors.InternalError(),
    errors.ReplicaLost(4, ["dead"]),
    errors.Unavailable("m"),
    errors.ShuttingDown(),
    errors.Cancelled("m"),
    errors.DeadlineExceeded(5),
]


def subclasses(cls: type[errors.ApiError]) -> set[type[errors.ApiError]]:
    return {cls}.union(*(subclasses(one) for one in cls.__subclasses__()))


def test_every_class_is_looked_at() -> None:
    own = {one for one in subclasses(errors.ApiError) if one.__module__ == errors.__name__}
    assert {type(error) for error in EVERY} | {errors.ApiError} == own


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_answer_is_an_envelope(error: errors.ApiError) -> None:
    answer = errors.answer(error)
    body = orjson.loads(answer.body)["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert answer.status_code == error.status
    assert answer.headers["content-type"] == "application/json"
    assert body["message"]
    assert re.fullmatch(r"[a-z_]+", body["code"])


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_server_error_is_for_5xx_only(error: errors.ApiError) -> None:
    # Some clients retry whatever has this type, for ever.
    assert (error.type == "server_error") == (error.status >= 500)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_what_is_worth_a_retry_says_when(error: errors.ApiError) -> None:
    if error.status in (429, 503) and not isinstance(error, errors.Cancelled):
        seconds = int(errors.answer(error).headers["retry-after"])
        assert 1 <= seconds <= 60  # clients do not wait longer
    else:
        assert "retry-after" not in errors.answer(error).headers


def test_every_failure_of_a_replica_has_an_answer() -> None:
    for kind in get_args(FailureKind):
        error = errors.of_failure(kind, "what the replica said", "messages")
        assert error.status >= 400
    assert errors.of_failure("invalid_request", "no", "messages[1]").param == "messages[1]"
    assert errors.of_failure("context_length_exceeded", "no", None).code == "context_length_exceeded"


def test_text_that_is_no_unicode_is_no_crash() -> None:
    assert b"did you mean" in errors.to_json(errors.ModelNotFound("x\ud800", ["y"]))
    assert b"?" in errors.to_json(errors.InvalidRequest("\ud800"))


def test_a_long_model_name_is_cut() -> None:
    assert len(errors.ModelNotFound("x" * 10_000, []).message) < 400
