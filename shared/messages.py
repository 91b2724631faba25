"""Every message on the wire between gateways, replicas and other clients: this module is the protocol.

All are JSON (msgspec structs), each top-level one with a version field `v`. Unknown fields are ignored, so a newer
sender can talk to an older reader. Positions count generated tokens of one choice from 0, *including* the resume
prefix; ids are token ids of the model's tokenizer.

Life of a job, in messages: `Job` (queue) → `DeltaBatch` of `Accepted`, `Working`, `Delta`…, then `Done` or `Failed`
(reply subject) → `Confirm` (replica rpc) → ack. Around it: `Ping`, `Cancel`, `Replay` to the replica and `Claim`,
`Ping` to the job's owner.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from shared.names import JobClass
from shared.records import ModelRecord

VERSION = 1

# --- the job -------------------------------------------------------------------------------------------------


class Sampling(Struct, omit_defaults=True, kw_only=True):
    """How to choose tokens. None means the model's own default (generation_config.json), else neutral."""

    n: int = 1
    seed: int = 0  # always set by the gateway; every random number is a function of (seed, choice, position)
    max_tokens: int | None = None  # per choice; None: what the context leaves
    temperature: float | None = None  # 0: greedy
    top_p: float | None = None
    top_k: int | None = None  # 0: off
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k ≥ 0: of the chosen token and of the k most likely
    thinking_budget: int | None = None  # tokens of reasoning, after which it is ended; None: as many as the model likes


class Constraint(Struct, omit_defaults=True, kw_only=True):
    """What the answer's content must match, whatever the model would rather say. Reasoning before it stays free."""

    kind: Literal["json_object", "json_schema", "regex", "grammar"]
    value: Any = None  # json_schema: the schema; regex: its text; grammar: a Lark grammar; json_object: nothing


class Prompt(Struct, omit_defaults=True, kw_only=True):
    """What the model reads: exactly one of `messages`, `text` and `ids` is set.

    The content of a message of the user or a tool is a string, or with images a list of parts: ``{"type": "text",
    "text"}`` and ``{"type": "image", "media_type", "data"}``, the data being the file (PNG, JPEG, WebP or GIF) in
    canonical base64. A refusal names an image by its place: ``messages[0].content[1]``.
    """

    messages: list[dict[str, Any]] | None = None  # OpenAI chat messages, as the chat template takes them
    tools: list[dict[str, Any]] = []  # OpenAI function tools
    shown_tools: list[dict[str, Any]] = []  # further ones, shown by a message: callable, not listed by the template
    tool_choice: str = "auto"  # auto, none (shown, but not to be called), required, or =<name> of the one to call
    parallel_tool_calls: bool = True  # False: at most one call in an answer
    template: dict[str, Any] = {}  # further variables of the chat template (enable_thinking …)
    continue_final: bool = False  # the last message is the beginning of the answer, which goes on from there
    freeform: dict[str, Constraint] = {}  # by tool: what its one argument, the text `input`, must match
    shorten: bool = False  # leave out the oldest messages rather than refuse a prompt that is too long
    text: str | None = None
    ids: list[int] | None = None


class ResumeChoice(Struct, omit_defaults=True):
    """What was delivered of one choice before its attempt was lost."""

    ids: list[int]
    finish: str | None = None  # set when this choice had already finished


class Job(Struct, omit_defaults=True, kw_only=True):
    """One inference request in the queue. Any NATS client may submit one; only `reply` is needed to hear of it.

    An embedding has `inputs` in place of a prompt, and each of them counts as a choice of one token: its `Embedded` is
    that choice's only delta, and in `resume` one with a finish reason need not be computed again.
    """

    id: str
    model: str
    reply: str  # subject on which DeltaBatch messages are wanted
    prompt: Prompt
    v: int = VERSION
    task: Literal["generate", "embed"] = "generate"
    inputs: list[Prompt] = []  # of an embedding: each has `text` or `ids`
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    constraint: Constraint | None = None
    attempt: int = 1  # fencing token: a higher attempt makes the lower ones void
    owner: str | None = None  # rpc subject that answers Claim and Ping and sends Confirm; None: nobody supervises
    on_owner_lost: Literal["drop", "adopt"] = "drop"
    job_class: JobClass = "interactive"
    share: str = ""  # whose share of a replica it takes, a key or a user: these take turns; "": its owner's
    published_s: float = 0.0  # unix time; what it waited for its turn at its gateway counts as time in the queue
    held_s: float = 0.0  # seconds for which it did that
    deadline_s: float = 0.0  # unix time; 0: none
    estimate_tokens: int = 0  # prompt tokens, roughly
    resume: list[ResumeChoice] = []  # empty, or one per choice


# --- deltas: replica → reply subject -------------------------------------------------------------------------


class ToolCall(Struct, omit_defaults=True):
    """A piece of a tool call, recognised in the output. Pieces of one index join: id and name stand in the first."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""  # JSON text, or the next part of it


class TokenLogprob(Struct, array_like=True):
    """Log probability of a chosen token, and of the most likely ones at its place."""

    id: int
    text: str
    logprob: float
    top: list[tuple[int, str, float]] = []


class Extra(Struct, omit_defaults=True):
    """What few deltas have."""

    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []
    stopped: str | None = None  # the stop string that ended the choice


class Accepted(Struct, array_like=True, tag="acc"):
    """The first replica to say this owns the attempt."""

    job: str
    attempt: int
    prompt_tokens: int
    fingerprint: str = ""  # of revision, dtype, quantisation and back end: equal means token-exact resume


class Working(Struct, array_like=True, tag="work"):
    """Still at it, nothing to show: sent about once a second before the first token."""

    job: str
    attempt: int
    phase: str  # queued, prefill
    done: int = 0  # prompt tokens computed
    total: int = 0


class Delta(Struct, array_like=True, tag="tok"):
    """New tokens of one choice and the text they settle. Has at least one id, or a finish reason."""

    job: str
    attempt: int
    choice: int
    start: int  # position of ids[0]; without ids, the number of tokens so far
    ids: list[int]
    text: str = ""  # content, whole characters only
    finish: str | None = None  # stop, length, tool_calls
    extra: Extra | None = None


class Embedded(Struct, array_like=True, tag="emb"):
    """The vector of one input of an embedding: the whole answer for it."""

    job: str
    attempt: int
    choice: int  # index of the input
    vector: bytes  # little-endian float32, normalised if the model says so


class Usage(Struct, omit_defaults=True):
    """Tokens of a whole job, all choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0


class Timings(Struct, omit_defaults=True):
    """Where the time of a job went, in seconds, as its last replica saw it."""

    queue_s: float = 0.0  # published → taken, without the load
    prefill_s: float = 0.0  # taken → first token
    decode_s: float = 0.0  # first → last token
    load_s: float = 0.0  # of the wait, how long no replica was ready; told by the gateway


class Done(Struct, array_like=True, tag="done"):
    """All choices finished. The replica keeps the job until the owner confirms."""

    job: str
    attempt: int
    usage: Usage
    timings: Timings


FailureKind = Literal[
    "invalid_request",  # the prompt or a parameter cannot be served; `param` names it
    "context_length_exceeded",
    "model_not_found",
    "queue_full",
    "deadline_exceeded",
    "replica_lost",  # the ranks died or were stopped: the owner may publish the job again
    "engine_error",  # this request made the engine fail; again would fail again
    "capacity",  # could never fit this replica's cache
    "cancelled",
    "shutting_down",
    "unavailable",
]


class Failed(Struct, array_like=True, tag="err"):
    """The attempt ended without a result. Only `replica_lost` and `shutting_down` are worth another attempt."""

    job: str
    attempt: int
    kind: FailureKind
    message: str
    param: str | None = None
    tokens: int = 0  # of the prompt, when it is longer than the context
    limit: int = 0  # the context that it is longer than, in tokens


def no_sight(model: str, place: str) -> str:
    """The message of the refusal (invalid_request, `place` its param) of an image that a model cannot take."""
    return (
        f"{place}: the model {model!r} takes no images: send text only, or choose a model whose input modalities name "
        "image; GET /v1/models lists them."
    )


Item = Accepted | Working | Delta | Embedded | Done | Failed


class DeltaBatch(Struct, array_like=True):
    """Everything one step produced for the jobs of one reply subject."""

    v: int
    replica: str
    worker: str
    items: list[Item]


# --- rpc: to a replica ---------------------------------------------------------------------------------------


class Ping(Struct, tag_field="op", tag="ping"):
    """Are you there? Answered by `Pong`."""

    v: int = VERSION


class Cancel(Struct, tag_field="op", tag="cancel"):
    """Stop working for these (job, attempt) pairs, or any lower attempt of the same job. No answer."""

    jobs: list[tuple[str, int]]
    v: int = VERSION


class Confirm(Struct, tag_field="op", tag="confirm"):
    """The owner has everything of these (job, attempt) pairs: the replica may ack them. No answer."""

    jobs: list[tuple[str, int]]
    v: int = VERSION


class Replay(Struct, tag_field="op", tag="replay"):
    """Send again what was published of a job from these positions on (one per choice). Answered by `Replayed`."""

    job: str
    attempt: int
    positions: list[int]
    v: int = VERSION


ReplicaRequest = Ping | Cancel | Confirm | Replay


class Pong(Struct, omit_defaults=True):
    """A front's answer: enough to tell a long step from a hang."""

    step: int = 0
    phase: str = "idle"
    age_s: float = 0.0  # since the rank's last stamp
    predicted_s: float = 0.0  # how long the rank expects this phase to take; 0: no prediction
    running: int = 0
    hung: bool = False
    v: int = VERSION


class Replayed(Struct, omit_defaults=True):
    """The items asked for; `gone` when the replica does not know the (job, attempt)."""

    items: list[Item] = []
    gone: bool = False
    v: int = VERSION


# --- rpc: to a job's owner -----------------------------------------------------------------------------------


class Claim(Struct, tag_field="op", tag="claim"):
    """JetStream delivered this job again: may I run it? Answered by `Claimed`."""

    job: str
    attempt: int
    replica: str
    v: int = VERSION


OwnerRequest = Ping | Claim


class Claimed(Struct, omit_defaults=True):
    """drop: finished, unknown or running well elsewhere. Otherwise the new attempt number and what to resume."""

    drop: bool = False
    attempt: int = 0
    resume: list[ResumeChoice] = []
    v: int = VERSION


# --- rpc: to the placement leader ----------------------------------------------------------------------------


class Ensure(Struct):
    """Jobs wait for this model. Answered by `Ensured`."""

    model: str
    v: int = VERSION


class Ensured(Struct, omit_defaults=True):
    """What the leader knows of the model: a replica state, or why there is none."""

    state: str
    reason: str = ""
    v: int = VERSION


class Explain(Struct):
    """Why does this model stand as it does? Answered by `Explained`."""

    model: str
    v: int = VERSION


class Candidate(Struct, omit_defaults=True):
    """A worker as a place for a model."""

    worker: str
    device: str
    verdict: str  # runs there, fits now, fits after unloading …, or what speaks against it
    free_bytes: int = 0  # not promised to anybody, on the device with the most
    total_bytes: int = 0


class Explained(Struct, omit_defaults=True):
    """The latest plan's word on a model."""

    state: str
    reason: str
    inputs: dict[str, Any] = {}
    candidates: list[Candidate] = []
    leader: str = ""
    epoch: int = 0
    v: int = VERSION


class WhatIf(Struct, omit_defaults=True):
    """What would be planned if this happened? Nothing is done. Answered by `Foreseen`."""

    change: Literal["load", "unload", "drain", "lose", "none"]
    name: str = ""  # of the model or worker
    v: int = VERSION


class Foreseen(Struct, omit_defaults=True):
    """What would be done, in words: one line for each change of an assignment, with its reason."""

    steps: list[str] = []
    states: dict[str, str] = {}  # of the models whose state would be another: old → new
    problem: str = ""  # why the question has no answer
    v: int = VERSION


class FindJob(Struct):
    """Who knows this job? Only a gateway that does answers, by `FoundJob`."""

    job: str
    v: int = VERSION


class FoundJob(Struct, omit_defaults=True):
    """Where a job is, or how it ended."""

    job: str
    model: str
    gateway: str
    state: str
    worker: str = ""
    replica: str = ""
    attempt: int = 1
    age_s: float = 0.0
    tokens: int = 0
    ahead: int | None = None  # jobs before it in the queue
    moves: list[str] = []  # why it was published again
    error: str = ""
    v: int = VERSION


# --- rpc: to any worker ----------------------------------------------------------------------------------------


class Count(Struct, omit_defaults=True):
    """How many tokens is this prompt for this model? Answered by `Counted`; the model need not be loaded."""

    model: ModelRecord
    prompt: Prompt
    v: int = VERSION


class Counted(Struct, omit_defaults=True):
    """The count, or why there is none.

    `elsewhere`: this worker lacks the model's files and cannot get them; another may have them.
    """

    tokens: int = 0
    problem: Literal["", "invalid_request", "elsewhere", "unavailable"] = ""
    message: str = ""
    param: str | None = None
    v: int = VERSION


class Estimate(Struct):
    """What will this model take, by its files? Answered by `Estimated`; no weights are read."""

    model: ModelRecord
    device_kind: Literal["cpu", "cuda"] = "cpu"
    v: int = VERSION


class Estimated(Struct, omit_defaults=True):
    """Sizes in bytes on each device; `wanted_bytes` is what a worker with room would reserve."""

    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    activation_bytes: int = 0
    fixed_bytes: int = 0
    minimum_bytes: int = 0  # below this it cannot be loaded
    wanted_bytes: int = 0  # 0: not told
    error: str = ""  # why there is no estimate
    v: int = VERSION


encode = msgspec.json.encode
