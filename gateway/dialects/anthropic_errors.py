"""Errors in Anthropic's envelope. The types are those that its clients know, so that they give up or retry rightly."""

from typing import Any

import orjson

from gateway.errors import ApiError, ContextLengthExceeded, NotSupported

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# The SDKs' tool runners ask for a conversation held by the server first, and go on without one when they read this.
_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


def envelope(error: ApiError, request_id: str = "") -> dict[str, Any]:
    """The body of an error, in an answer as in a stream."""
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    value: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": _message(error)}}
    if isinstance(error, NotSupported) and error.param == "thread":
        value["error"]["details"] = _NO_THREADS
    if request_id:
        value["request_id"] = request_id
    return value


def to_json(error: ApiError, request_id: str = "") -> bytes:
    """The envelope as JSON. Text that is no UTF-8 (a lone surrogate echoed back) is replaced, never refused."""
    value = envelope(error, request_id)
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        value["error"]["message"] = value["error"]["message"].encode("utf-8", "replace").decode()
        return orjson.dumps(value)


def event(error: ApiError, request_id: str = "") -> bytes:
    """The event that ends a stream."""
    return b"event: error\ndata: " + to_json(error, request_id) + b"\n\n"


def _message(error: ApiError) -> str:
    """Clients shorten their conversation when they read these very words, and take the numbers out of them."""
    if isinstance(error, ContextLengthExceeded) and error.limit:
        return f"prompt is too long: {error.tokens} tokens > {error.limit} maximum"
    return error.message
