"""Every message between the three processes of a worker: this module is their protocol.

agent ⇄ front and front ⇄ rank are each joined by one socket pair that carries length-prefixed JSON frames
(`worker.channel`). The first frame down is the child's configuration. End of file means that the other side is gone,
and a child then ends.

A `key` names a job's attempt within one replica (``<job>#<attempt>``). Positions count generated tokens per choice
from 0, the resume prefix included.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from shared.records import ModelRecord

# --- agent → front -------------------------------------------------------------------------------------------


class FrontConfig(Struct, tag="front_config", kw_only=True):
    """How to start one replica."""

    replica: str
    worker: str
    model: ModelRecord
    path: str  # local directory with config.json, weights and tokenizer
    device: str  # cpu, cuda:0; of the first rank
    followers: list[str] = []  # devices of the other ranks, where it is divided between several
    cpus: list[list[int]] = []  # processors that each rank is to stay on; none named: any
    threads: int  # of each rank
    memory_bytes: int  # granted on each device: weights, activations and cache together
    enforce_memory: bool = False  # the rank's process may not have more
    slots: int  # jobs at once
    prefill_tokens: int  # token budget of a step
    nats: dict[str, Any]  # BusSettings
    log_level: str = "info"


class Drain(Struct, tag="drain"):
    """Take no more jobs; finish or hand back the running ones within `grace_s`, then exit."""

    grace_s: float


AgentToFront = FrontConfig | Drain

# --- front → agent -------------------------------------------------------------------------------------------


FatalKind = Literal["", "out_of_memory"]  # why a rank ended, where that changes what is done about it


class FrontStatus(Struct, tag="status", kw_only=True):
    """What the agent writes into the replica's record; sent on change, at most ten times a second."""

    state: Literal["loading", "ready", "draining", "failed"]
    reason: str = ""
    kind: FatalKind = ""  # of a failure
    stage: str = ""  # while loading: download, start, import, read, pack, warm up
    done_bytes: int = 0
    total_bytes: int = 0
    slots: int = 0
    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    block_tokens: int = 0
    context_limit: int = 0
    fingerprint: str = ""
    capabilities: dict[str, bool] = {}  # tools, reasoning, vision
    pids: list[int] = []
    load_s: float = 0.0
    last_used_s: float = 0.0
    measured_bytes: int = 0  # what the rank really took
    stages_s: dict[str, float] = {}  # of the load


FrontToAgent = FrontStatus

# --- front → rank --------------------------------------------------------------------------------------------


class RankConfig(Struct, tag="rank_config", kw_only=True):
    """How to start one rank."""

    path: str
    task: Literal["generate", "embed"] = "generate"
    backend: Literal["torch", "synthetic"]
    device: str
    followers: list[str] = []  # devices of further ranks: this one starts them, and they end together
    cpus: list[list[int]] = []  # processors that each rank is to stay on; none named: any
    dtype: str  # auto, float32, bfloat16, float16
    quantization: str = ""  # of the weights: "" (as the checkpoint is), int8, int4
    threads: int
    memory_bytes: int
    enforce_memory: bool = False  # on a CPU: what goes beyond is refused to the process
    context_limit: int  # 0: the model's own
    slots: int
    prefill_tokens: int
    options: dict[str, Any] = {}
    log_level: str = "info"


class Sample(Struct, omit_defaults=True, kw_only=True):
    """Sampling with every default resolved. All choices of a job share it."""

    seed: int
    max_tokens: int  # per choice, the resume prefix included
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as in transformers
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: dict[int, float] = {}
    stop_ids: list[int] = []  # a choice that samples one of them finishes with "stop"; the id itself is reported
    logprobs: int | None = None


class Thinking(Struct, omit_defaults=True, kw_only=True):
    """A bound on the reasoning of each choice: when it is spent, the rank writes `closing` and the model goes on."""

    budget: int  # tokens, the marks in the output included
    opening: list[int]  # begins a block
    closing: list[int]  # ends it; by the first of them the model itself ends one
    is_open: bool = False  # the prompt ends within a block


class Choice(Struct, array_like=True):
    """One choice of a job and what was generated of it before."""

    index: int
    resume: list[int] = []


class Image(Struct, array_like=True):
    """An image in a prompt. Equal `digest`s mean equal files."""

    data: bytes  # the file, already found to be readable
    digest: bytes  # of the file, 32 bytes
    grid: tuple[int, int]  # rows and columns of its tokens
    runs: list[tuple[int, int]]  # where these are in the prompt: first position and how many, in order


class Submit(Struct, tag="submit", kw_only=True):
    """Run this. To an embedding model: `choices` are the `inputs` wanted, and there is no prompt."""

    key: str
    prompt: list[int]
    images: list[Image] = []
    inputs: list[list[int]] = []
    choices: list[Choice]
    sample: Sample
    batch_class: bool = False  # behind every interactive job
    grammar: str = ""  # in the constraint library's own form; already found to compile
    thinking: Thinking | None = None  # how much reasoning there may be; None: as much as the model likes
    owner: str = ""  # whose share of the engine it takes: jobs of different owners take turns


class Abort(Struct, tag="abort"):
    """Drop these (key, choice); choice -1 means all. Takes effect before the next step; nothing more is reported."""

    choices: list[tuple[str, int]]


class Stop(Struct, tag="stop"):
    """Exit now."""


FrontToRank = RankConfig | Submit | Abort | Stop

# --- rank → front --------------------------------------------------------------------------------------------


class Loading(Struct, tag="loading"):
    """Progress of a load: stage is import, read, pack (into the layout of the products), warm up."""

    stage: str
    done_bytes: int = 0
    total_bytes: int = 0


class Ranks(Struct, tag="ranks"):
    """It has started the other ranks: their process ids."""

    pids: list[int]


class Ready(Struct, tag="ready", kw_only=True):
    """The model is loaded and warm."""

    blocks: int
    block_tokens: int
    context_limit: int  # what one sequence may hold: the smaller of the model's limit and the cache
    vocab_size: int
    fingerprint: str
    measured_bytes: int  # on each device, the most of them
    load_s: float
    stages_s: dict[str, float] = {}  # seconds of each stage, by its name


class ChoiceLogprob(Struct, array_like=True):
    """Log probabilities at one generated position."""

    id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Output(Struct, array_like=True):
    """What one step brought for one choice."""

    key: str
    choice: int
    start: int  # position of ids[0]
    ids: list[int]
    finish: Literal["stop", "length"] | None = None
    cached: int = 0  # prompt tokens found in the cache; with a choice's first output
    logprobs: list[ChoiceLogprob] | None = None
    vector: bytes | None = None  # of an input to an embedding model: little-endian float32


class Prefilling(Struct, array_like=True):
    """A choice whose prompt is still being computed."""

    key: str
    done: int
    total: int


class Refused(Struct, array_like=True):
    """This job cannot run here, and why. It has left the rank."""

    key: str
    kind: Literal["invalid_request", "context_length_exceeded", "capacity", "engine_error"]
    message: str


class Step(Struct, tag="step", kw_only=True):
    """Everything one step brought."""

    outputs: list[Output] = []
    prefilling: list[Prefilling] = []  # at most one message a second per key
    refused: list[Refused] = []
    running: int = 0
    waiting: int = 0
    blocks_free: int = 0


class Fatal(Struct, tag="fatal"):
    """The rank cannot go on and exits."""

    message: str
    kind: FatalKind = ""


RankToFront = Loading | Ranks | Ready | Step | Fatal

encode = msgspec.json.encode
decode_agent_to_front = msgspec.json.Decoder(AgentToFront).decode
decode_front_to_agent = msgspec.json.Decoder(FrontToAgent).decode
decode_front_to_rank = msgspec.json.Decoder(FrontToRank).decode
decode_rank_to_front = msgspec.json.Decoder(RankToFront).decode
