"""Every record in the two buckets. `fleet` says what is, `plan` says what should be.

| key | record | writer |
|---|---|---|
| fleet `worker.<name>` | WorkerRecord | the host's agent, every second; expires after 5 s |
| fleet `replica.<id>` | ReplicaRecord | the host's agent, every second and on change; expires after 5 s |
| fleet `gw.<id>` | GatewayRecord | the gateway, every second; expires after 5 s |
| fleet `lease.placer` | LeaseRecord | the placement leader; expires after 3 s |
| plan `model.<slug>` | ModelRecord | gateways (from the catalogue) |
| plan `intent.<slug>` | IntentRecord | operators |
| plan `want.<worker>` | AssignmentRecord | the placement leader, by compare-and-set |

Sizes are bytes, times are unix seconds. Unknown fields are ignored, every record has a version `v`.
"""

from typing import Any, Literal

from msgspec import Struct

VERSION = 1
HEARTBEAT_S = 1.0
RECORD_TTL_S = 5
LEASE_TTL_S = 3
LEASE_RENEW_S = 1.0


class Device(Struct, omit_defaults=True, kw_only=True):
    """One place where a replica can run."""

    id: str  # cpu, cuda:0 …
    kind: Literal["cpu", "cuda"]
    name: str
    total_bytes: int
    free_bytes: int  # as the driver or the kernel reports now
    reserved_bytes: int = 0  # promised by the agent's ledger


class Failure(Struct, omit_defaults=True, kw_only=True):
    """Why an assigned model does not run here, and when the agent tries again."""

    model: str
    reason: str
    at_s: float
    retry_at_s: float = 0.0  # 0: not before the assignment changes
    attempts: int = 1


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
    stage: str = ""  # while loading: download, start, read, warm up
    done_bytes: int = 0
    total_bytes: int = 0
    devices: list[str] = []
    reserved_bytes: int = 0
    slots: int = 0  # jobs it takes at once
    running: int = 0
    waiting: int = 0  # taken, but not yet scheduled
    blocks_total: int = 0
    blocks_free: int = 0
    block_tokens: int = 0
    context_limit: int = 0  # tokens, prompt and completion together
    fingerprint: str = ""
    pids: list[int] = []  # front, ranks
    load_s: float = 0.0
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
    created_s: float = 0.0
    v: int = VERSION


class IntentRecord(Struct, omit_defaults=True, kw_only=True):
    """What an operator wants of a model."""

    model: str
    want: Literal["loaded", "unloaded"]
    on: list[str] = []  # worker names; empty: wherever it fits
    replicas: int = 1
    by: str = ""
    at_s: float = 0.0
    v: int = VERSION


class Assigned(Struct, omit_defaults=True, kw_only=True):
    """A model that a worker should run, with all it needs to know to start it."""

    model: ModelRecord
    devices: list[str] = []
    reason: str = ""


class AssignmentRecord(Struct, omit_defaults=True, kw_only=True):
    """Everything a worker should run. Agents refuse a lower (epoch, generation) than they have seen."""

    worker: str
    epoch: int
    generation: int
    models: list[Assigned] = []
    v: int = VERSION
