"""The neutral vocabulary that every dialect maps to and from: one request, and the events of its answer.

A dialect is two pure things: a function from an HTTP body to an `InferenceRequest`, and an object that turns events
into bytes. Tokens travel as the wire's own `Delta`, because a second object per token would cost more than it says.
"""

from dataclasses import dataclass

from gateway.errors import ApiError
from shared.messages import Delta, Prompt, Sampling, Timings, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """What a client wants, in no dialect's words."""

    model: str
    prompt: Prompt
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False  # a usage event at the end of the stream
    include_thinking: bool = False  # reasoning as <think>…</think> inside the content
    estimate_tokens: int = 0  # of the prompt, roughly
    ignored: tuple[str, ...] = ()  # names of parameters that were accepted and have no effect


@dataclass(frozen=True, slots=True)
class Opened:
    """A replica accepted the job. Comes again when the job moved to another one."""

    prompt_tokens: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to show for a while; a stream says so to keep its connection alive."""

    state: str
    ahead: int | None = None  # jobs before this one in the queue, at most


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices ended as they should."""

    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Broken:
    """The request ended with an error; nothing follows."""

    error: ApiError


Event = Opened | Waiting | Delta | Finished | Broken
