"""The neutral vocabulary that every dialect maps to and from: one request, and the events of its answer.

A dialect is two pure things: a function from an HTTP body to an `InferenceRequest`, and an object that turns events
into bytes. Tokens travel as the wire's own `Delta`, because a second object per token would cost more than it says.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

from gateway.errors import ApiError
from shared.messages import Constraint, Delta, Embedded, Prompt, Sampling, Timings, Usage
from shared.names import JobClass


class InferenceRequest(Struct, frozen=True, kw_only=True):
    """What a client wants, in no dialect's words.

    Prompts of messages have one normal form, whatever the dialect: OpenAI's chat messages, tools and calls, where a
    content that is all text is one plain string, and one with images a list of the parts ``{"type": "text", "text"}``
    and ``{"type": "image", "media_type", "data"}``. So equal prompts become equal tokens, and find each other's prefix.
    """

    model: str  # as the client named it, which may be an alias; answers name it so again
    prompt: Prompt = field(default_factory=Prompt)
    sampling: Sampling = field(default_factory=Sampling)
    task: Literal["generate", "embed"] = "generate"
    further: tuple[Prompt, ...] = ()  # further prompts of the same request, each a job; their choices count on
    inputs: tuple[Prompt, ...] = ()  # of an embedding, in place of `prompt`
    constraint: Constraint | None = None
    job_class: JobClass = "interactive"
    metadata: Mapping[str, str] = {}  # the client's own notes, given back where the API does
    notes: Any = None  # of the dialect's parser to its writers
    images: tuple[str, ...] = ()  # where the prompt's images stand in the body, in their order
    stream: bool = False
    include_usage: bool = False  # a usage event at the end of the stream
    include_thinking: bool = False  # reasoning as <think>…</think> inside the content
    estimate_tokens: int = 0  # of the prompt, roughly
    ignored: tuple[str, ...] = ()  # names of parameters that were accepted and have no effect


class Opened(Struct, frozen=True):
    """A replica accepted the job. Comes again when the job moved to another one."""

    prompt_tokens: int
    fingerprint: str


class Waiting(Struct, frozen=True):
    """Nothing to show for a while; a stream says so to keep its connection alive."""

    state: str
    ahead: int | None = None  # jobs before this one in the queue, at most
    estimate_s: float | None = None  # until it begins, as far as can be told
    reason: str = ""  # what it waits for, in one line


class Finished(Struct, frozen=True):
    """All choices ended as they should."""

    usage: Usage
    timings: Timings


class Broken(Struct, frozen=True):
    """The request ended with an error; nothing follows."""

    error: ApiError


Event = Opened | Waiting | Delta | Embedded | Finished | Broken
