"""Everything that can go wrong for a client of the gateway, and the one place where it becomes an HTTP answer.

Each class fixes status, type and code, carries its numbers as fields and says the remedy in its message. `type` is
``server_error`` for 5xx only: some clients retry whatever bears that type, for ever.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import orjson
from starlette.responses import Response

from shared.messages import FailureKind

MEDIA_TYPE = "application/json"


class ApiError(Exception):
    """The base: one answer. `param` is the path of the offending field, such as ``messages[1].content``."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"  # stable label of logs and metrics

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.kind
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    @property
    def type(self) -> str:
        """The OpenAI error type that belongs to the status."""
        if self.status >= 500:
            return "server_error"
        return "rate_limit_error" if self.status == 429 else "invalid_request_error"


class InvalidRequest(ApiError):
    """A field has a value that cannot be served. Remedy: change the field that `param` names."""

    status = 400
    kind = "invalid_request"


class NotSupported(ApiError):
    """A parameter is known but not served. Remedy: leave it out, or use a value that the message offers."""

    status = 400
    kind = "unsupported_parameter"


class ContextLengthExceeded(ApiError):
    """The prompt leaves no room in the model's context. Remedy: shorten it."""

    status = 400
    kind = "context_length_exceeded"

    def __init__(self, message: str, *, param: str | None = None, tokens: int = 0, limit: int = 0) -> None:
        super().__init__(message, param=param)
        self.tokens = tokens  # of the prompt; 0: not told
        self.limit = limit


class NotFound(ApiError):
    """No such path. Remedy: the message names the paths that exist."""

    status = 404
    kind = "not_found"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not. Remedy: header Allow."""

    status = 405
    kind = "method_not_allowed"


class ModelNotFound(ApiError):
    """The catalogue lacks the model. Remedy: one of `near`, or GET /v1/models."""

    status = 404
    kind = "model_not_found"

    def __init__(self, model: str, near: Sequence[str]) -> None:
        hint = f"did you mean {' or '.join(near)}?" if near else "GET /v1/models lists what there is."
        super().__init__(f"The model {_shown(model)} does not exist here; {hint}", param="model")
        self.model = model
        self.near = list(near)


class BodyTooLarge(ApiError):
    """The HTTP body is over the gateway's limit. Remedy: send less, or raise max_body_bytes."""

    status = 413
    kind = "body_too_large"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"The request body has {size} bytes or more, and this gateway takes at most {limit} (max_body_bytes)."
        )
        self.size = size
        self.limit = limit


class JobTooLarge(ApiError):
    """The job does not fit a message of the bus. Remedy: send less, or raise the broker's max_payload."""

    status = 413
    kind = "job_too_large"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"The request makes a job of {size} bytes, and the bus carries at most {limit} (max_payload of the broker)."
        )
        self.size = size
        self.limit = limit


class CapacityExceeded(ApiError):
    """The request could never fit the cache of a replica. Remedy: a shorter prompt, or fewer choices."""

    status = 413
    kind = "capacity"


class UnsupportedMediaType(ApiError):
    """The body is not JSON by its headers. Remedy: content-type application/json, no content-encoding."""

    status = 415
    kind = "unsupported_media_type"


class QueueFull(ApiError):
    """Too many jobs wait for the model. Remedy: retry after the seconds given, or load more replicas."""

    status = 429
    kind = "queue_full"

    def __init__(self, model: str, waiting: int | None = None, retry_after_s: int = 5) -> None:
        number = "Too many" if waiting is None else f"{waiting}"
        super().__init__(
            f"{number} requests already wait for {_shown(model)}; retry in {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )
        self.model = model
        self.waiting = waiting


class SlowClient(ApiError):
    """The client read too slowly. Remedy: read the stream while it comes."""

    status = 500
    kind = "slow_client"

    def __init__(self, held: int) -> None:
        super().__init__(f"The stream was ended: {held} events waited for this client, which reads too slowly.")
        self.held = held


class EngineFailed(ApiError):
    """The request made the engine fail, and would again. Remedy: the worker's log, by the request id."""

    status = 500
    kind = "engine_error"


class InternalError(ApiError):
    """A defect of the gateway. Remedy: its log, by the request id."""

    def __init__(self) -> None:
        super().__init__("The gateway failed to handle this request; its log has the details under the request id.")


class ReplicaLost(ApiError):
    """Every replica that took the job was lost. Remedy: retry; if it recurs, the workers' logs."""

    status = 503
    kind = "replica_lost"

    def __init__(self, attempts: int, reasons: Sequence[str]) -> None:
        super().__init__(
            f"The request was given up after {attempts} attempts; the replicas were lost: {', '.join(reasons)}.",
            retry_after_s=5,
        )
        self.attempts = attempts
        self.reasons = list(reasons)


class Unavailable(ApiError):
    """The fleet cannot take the request now. Remedy: retry after the seconds given."""

    status = 503
    kind = "unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class ShuttingDown(ApiError):
    """This gateway is stopping. Remedy: retry; another gateway or its successor answers."""

    status = 503
    kind = "shutting_down"

    def __init__(self) -> None:
        super().__init__("This gateway is shutting down; send the request again.", retry_after_s=2)


class Cancelled(ApiError):
    """Someone other than the client cancelled the job. Remedy: retry."""

    status = 503
    kind = "cancelled"


class DeadlineExceeded(ApiError):
    """The job took longer than allowed. Remedy: fewer tokens, more replicas, or a longer job_deadline_s."""

    status = 504
    kind = "deadline_exceeded"

    def __init__(self, limit_s: float | None = None) -> None:
        limit = "by its deadline" if limit_s is None else f"within {limit_s:g} s (job_deadline_s)"
        super().__init__(f"The request was not finished {limit}.")
        self.limit_s = limit_s


_OF_KIND: dict[FailureKind, Callable[[str, str | None], ApiError]] = {
    "invalid_request": lambda message, param: InvalidRequest(message, param=param),
    "context_length_exceeded": lambda message, param: ContextLengthExceeded(message, param=param or "messages"),
    "model_not_found": lambda message, param: Unavailable(message),  # the catalogue had it: the replica is behind
    "queue_full": lambda message, param: Unavailable(message),
    "deadline_exceeded": lambda message, param: DeadlineExceeded(),
    "replica_lost": lambda message, param: Unavailable(message),
    "engine_error": lambda message, param: EngineFailed(message),
    "capacity": lambda message, param: CapacityExceeded(message, param=param),
    "cancelled": lambda message, param: Cancelled(message),
    "shutting_down": lambda message, param: Unavailable(message),
    "unavailable": lambda message, param: Unavailable(message),
}


def of_failure(kind: FailureKind, message: str, param: str | None, *, tokens: int = 0, limit: int = 0) -> ApiError:
    """The error that a replica's `Failed` means for the client."""
    error = _OF_KIND[kind](message, param)
    if isinstance(error, ContextLengthExceeded):
        error.tokens, error.limit = tokens, limit
    return error


def envelope(error: ApiError) -> dict[str, Any]:
    """The body of an error in OpenAI's shape, in an answer as in a stream."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def to_json(error: ApiError) -> bytes:
    """The envelope as JSON. Text that is no UTF-8 (a lone surrogate echoed back) is replaced, never refused."""
    try:
        return orjson.dumps(envelope(error))
    except orjson.JSONEncodeError:
        body = envelope(error)["error"]
        clean = {key: value and value.encode("utf-8", "replace").decode() for key, value in body.items()}
        return orjson.dumps({"error": clean})


def answer(error: ApiError, body: bytes | None = None) -> Response:
    """The HTTP answer of an error: the only place that makes one. `body`: in another envelope than OpenAI's."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return Response(
        to_json(error) if body is None else body, status_code=error.status, headers=headers, media_type=MEDIA_TYPE
    )


def _shown(model: str, limit: int = 200) -> str:
    text = model if len(model) <= limit else model[:limit] + "…"
    return repr(text)
