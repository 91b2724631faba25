"""Every record in the two buckets. `fleet` says what is, `plan` says what should be.

| key | record | writer |
|---|---|---|
| fleet `worker.<name>` | WorkerRecord | the host's agent, every second; expires after 5 s |
| fleet `replica.<id>` | ReplicaRecord | the host's agent, on change and every two seconds; expires after 5 s |
| fleet `gw.<id>` | GatewayRecord | the gateway, every two seconds; expires after 5 s |
| fleet `lease.placer` | LeaseRecord | the placement leader; expires after 3 s |
| plan `model.<slug>` | ModelRecord | gateways (from the catalogue) |
| plan `intent.<slug>` | IntentRecord | operators |
| plan `want.<worker>` | AssignmentRecord | the placement leader, by compare-and-set |
| plan `drain.<worker>` | DrainRecord | operators; absent: the worker may be used |
| plan `measured.<slug>` | MeasuredRecord | the placement leader: what loads of the model took |

`EventRecord` is in no bucket: the stream EVENTS keeps what the placement leader decided, and why.

Sizes are bytes, times are unix seconds. Unknown fields are ignored, every record has a version `v`.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

VERSION = 1
HEARTBEAT_S = 1.0
RENEW_S = 2.0  # a record that says nothing new: twice within its lifetime
RECORD_TTL_S = 5
LEASE_TTL_S = 3
LEASE_RENEW_S = 1.0
MAX_REPLICAS = 64  # of a model that an operator may want


class Device(Struct, omit_defaults=True, kw_only=True):
    """One place where a replica can run."""

    id: str  # cpu, cuda:0 …
    kind: Literal["cpu", "cuda"]
    name: str
    total_bytes: int
    free_bytes: int  # as the driver or the kernel reports now
    reserved_bytes: int = 0  # promised by the agent's ledger


FailureKind = Literal[
    "",  # anything else: tried again where it is, and elsewhere if there is an elsewhere
    "no_memory",  # not beside what the device holds now
    "does_not_fit",  # not even on the empty device
    "underestimated",  # more than it was promised or granted: with `needed_bytes` it may run
]


class Failure(Struct, omit_defaults=True, kw_only=True):
    """Why an assigned model does not run here, and when the agent tries again."""

    model: str
    reason: str
    at_s: float
    retry_at_s: float = 0.0  # 0: not before the assignment changes
    attempts: int = 1
    kind: FailureKind = ""
    device: str = ""  # for want of memory: where, and how much of it
    needed_bytes: int = 0
    free_bytes: int = 0


class WorkerRecord(Struct, omit_defaults=True, kw_only=True):
    """A host and its agent."""

    name: str
    incarnation: str  # new at each start of the agent
    host: str
    state: Literal["ready", "draining"] = "ready"
    pid: int = 0
    devices: list[Device] = []
    cores: int = 0
    reserved_cores: int = 0
    replicas: list[str] = []  # ids
    failures: list[Failure] = []
    epoch: int = 0  # of the assignment it follows
    generation: int = 0
    version: str = ""
    mirrors: list[str] = []  # hubs beside the usual one, by the names that its settings define
    at_s: float = 0.0
    v: int = VERSION


ReplicaState = Literal["loading", "ready", "draining", "failed"]


class ReplicaRecord(Struct, omit_defaults=True, kw_only=True):
    """One loaded (or loading) copy of a model."""

    id: str
    model: str
    worker: str
    state: ReplicaState
    reason: str = ""  # of a failure
    stage: str = ""  # while loading: download, start, import, read, pack, warm up
    done_bytes: int = 0
    total_bytes: int = 0
    devices: list[str] = []
    reserved_bytes: int = 0  # by the ledger, on each of its devices
    estimated_bytes: int = 0  # before the load; 0: unknown
    measured_bytes: int = 0  # taken in fact, on each of its devices; 0: not known yet
    slots: int = 0  # jobs it takes at once
    running: int = 0
    waiting: int = 0  # taken, but not yet scheduled
    blocks_total: int = 0
    blocks_free: int = 0
    block_tokens: int = 0
    context_limit: int = 0  # tokens, prompt and completion together
    fingerprint: str = ""
    capabilities: dict[str, bool] = {}  # what the checkpoint says of itself: tools, reasoning, vision
    pids: list[int] = []  # front, ranks
    load_s: float = 0.0
    stages_s: dict[str, float] = {}  # seconds of the stages of its load
    since_s: float = 0.0
    last_used_s: float = 0.0
    at_s: float = 0.0
    v: int = VERSION


class GatewayRecord(Struct, omit_defaults=True, kw_only=True):
    """A gateway."""

    id: str
    host: str
    url: str
    in_flight: int = 0
    version: str = ""
    at_s: float = 0.0
    v: int = VERSION


class LeaseRecord(Struct, kw_only=True):
    """Who leads. `epoch` grows with every change of holder."""

    holder: str
    epoch: int
    v: int = VERSION


class ModelRecord(Struct, omit_defaults=True, kw_only=True):
    """A model of the catalogue: what may be asked for."""

    id: str
    source: str  # a Hugging Face repository id, or an absolute path on the workers
    revision: str = ""
    backend: Literal["torch", "synthetic"] = "torch"
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    context_limit: int = 0  # 0: the model's own
    max_slots: int = 0  # 0: the worker's default
    sampling: dict[str, Any] = {}  # defaults that go before generation_config.json
    options: dict[str, Any] = {}  # of the back end
    quantization: str = ""  # "": as the checkpoint is; int8, int4
    task: Literal["generate", "embed"] = "generate"
    aliases: list[str] = []  # further names under which it may be asked for
    description: str = ""
    capabilities: dict[str, bool] = {}  # declared over what the checkpoint says: tools, reasoning, vision
    cost: dict[str, float] = {}  # per million tokens: input, output, cached_input
    chat_template: str = ""  # in place of the checkpoint's own
    tool_convention: str = ""  # in place of the one recognised from the template
    devices: int = 1  # devices of one replica on one worker (tensor parallel)
    memory_floor_bytes: int = 0  # per device; 0: only what the estimate says
    workers: list[str] = []  # that may run it; empty: all
    residency: int = 0  # class; a model displaces its own class and those below
    pinned: bool = False  # never displaced
    priority: int = 0  # within a class, where the strategy is "priority"
    keep_alive_s: float = 0.0  # unloaded after so long without a job; 0: stays until displaced
    min_replicas: int = 0  # kept loaded without demand
    max_replicas: int = 1  # at most, as the backlog grows
    origin: str = ""  # models.toml: from that file, and to go when it goes from there; else added by an operator
    created_s: float = 0.0
    v: int = VERSION


class IntentRecord(Struct, omit_defaults=True, kw_only=True):
    """What an operator wants of a model. Typed by hand, `want` is enough: the key says which model."""

    model: str = ""  # empty: that of the key
    want: Literal["loaded", "unloaded"]
    on: list[str] = []  # worker names; empty: wherever it fits
    replicas: Annotated[int, Meta(ge=1, le=MAX_REPLICAS)] = 1
    pinned: bool = False  # never displaced, once it is loaded
    by: str = ""
    at_s: float = 0.0
    v: int = VERSION


class Assigned(Struct, omit_defaults=True, kw_only=True):
    """A model that a worker should run, with all it needs to know to start it."""

    model: ModelRecord
    devices: list[str] = []
    reason: str = ""
    memory_bytes: int = 0  # at most, on each device; 0: as the worker's ledger has it
    unload_if_idle: bool = False  # give up when nothing runs, and stay given up; while anything runs: go on
    room_for: str = ""  # with `unload_if_idle`: the model that waits for the memory
    at_s: float = 0.0  # when it was assigned


class AssignmentRecord(Struct, omit_defaults=True, kw_only=True):
    """Everything a worker should run. Agents refuse a lower (epoch, generation) than they have seen."""

    worker: str
    epoch: int
    generation: int
    models: list[Assigned] = []
    leaving: list[Assigned] = []  # taken away by this record or shortly before: their memory is not free yet
    v: int = VERSION


class DrainRecord(Struct, omit_defaults=True, kw_only=True):
    """An operator wants a worker emptied: it gets nothing new, and what it has is moved or finished."""

    worker: str = ""  # empty: that of the key
    by: str = ""
    at_s: float = 0.0
    v: int = VERSION


class Measurement(Struct, omit_defaults=True, kw_only=True):
    """What a load took on one worker."""

    worker: str
    bytes: int  # on each device
    load_s: float = 0.0
    at_s: float = 0.0


class MeasuredRecord(Struct, omit_defaults=True, kw_only=True):
    """What loads of a model took; of another source, revision, dtype or quantisation it says nothing."""

    model: str
    variant: str
    loads: list[Measurement] = []  # the latest of each worker
    v: int = VERSION


EventKind = Literal[
    "assigned",  # to load here
    "yielding",  # told to unload if idle, in favour of another or because nobody uses it
    "unloaded",  # told to unload: what runs is finished or handed over first
    "kept",  # a request to yield was taken back
    "waiting",  # wanted, but not to be had now
    "cannot_fit",  # no worker is large enough
    "loading",  # facts from here on: what workers reported
    "ready",
    "failed",
    "gone",
    "joined",
    "drained",
    "lost",
    "leads",  # another gateway took over placement
    "refused",  # an operator wrote a record that nobody understands, or of a model that is not in the catalogue
]


class EventRecord(Struct, omit_defaults=True, kw_only=True):
    """One decision of the placement leader, or one fact that decisions follow from."""

    at_s: float
    kind: EventKind
    model: str = ""
    worker: str = ""
    epoch: int = 0
    reason: str = ""
    inputs: dict[str, Any] = {}  # the figures that it was decided from
    v: int = VERSION
