"""Server-sent events as bytes. One frame a token, so a frame is a prepared prefix, an escaped string and a suffix."""

import orjson

from gateway.errors import ApiError, to_json
from gateway.request import Waiting

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


def data(payload: bytes) -> bytes:
    """A data event. `payload` must hold no line break, which compact JSON never does."""
    return b"data: " + payload + b"\n\n"


def event(value: object) -> bytes:
    """A data event of any JSON value."""
    return data(orjson.dumps(value))


def error(problem: ApiError) -> bytes:
    """The event that ends a stream which cannot go on."""
    return data(to_json(problem))


def comment(waiting: Waiting) -> bytes:
    """A keep-alive that clients skip and people can read: state, jobs ahead, seconds until it begins, and why."""
    ahead = b"" if waiting.ahead is None else b" waiting=%d" % waiting.ahead
    estimate = b"" if waiting.estimate_s is None else b" estimate_s=%d" % waiting.estimate_s
    reason = b" reason=%s" % waiting.reason.encode() if waiting.reason else b""
    return b": plexus state=%s%s%s%s\n\n" % (waiting.state.encode(), ahead, estimate, reason)
