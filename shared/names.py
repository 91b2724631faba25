"""Every subject, stream, consumer, bucket, key and header of the fleet, in one place.

Nobody else formats a subject or parses a key. A model id becomes one token of a subject by `slug`, reversibly:
characters outside ``[A-Za-z0-9_-]`` turn into ``=XX`` (UTF-8 bytes in upper-case hex), so
``meta-llama/Llama-3.1-8B`` is ``meta-llama=2FLlama-3=2E1-8B``. The result is valid as a subject token, as a
durable consumer name and as a key.
"""

import re
import secrets
from functools import lru_cache
from typing import Literal, get_args

PREFIX = "plexus"

JobClass = Literal["interactive", "batch"]
JOB_CLASSES: tuple[JobClass, ...] = get_args(JobClass)

# --- streams and buckets -------------------------------------------------------------------------------------

JOBS = "JOBS"
FLEET = "fleet"  # what is: workers, replicas, gateways, leases; history 1 because its keys expire
PLAN = "plan"  # what should be: catalogue, intents, assignments; history 10
EVENTS = "EVENTS"  # what the placement leader decided, and why
RESPONSES = "responses"  # answers of the Responses API that can be fetched and continued from

# --- headers -------------------------------------------------------------------------------------------------

MSG_ID = "Nats-Msg-Id"
MSG_TTL = "Nats-TTL"
EXPECTED_STREAM = "Nats-Expected-Stream"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
KV_OPERATION = "KV-Operation"
MARKER_REASON = "Nats-Marker-Reason"
ROLLUP = "Nats-Rollup"
SEQUENCE = "Nats-Sequence"
SUBJECT = "Nats-Subject"
UP_TO_SEQUENCE = "Nats-UpTo-Sequence"
STATUS = "Status"

_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_SLUG = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_TOKEN = re.compile(r"[A-Za-z0-9_=-]+")


@lru_cache(maxsize=4096)
def slug(model_id: str) -> str:
    """The model id as one subject token. Raises ValueError for an empty id."""
    if not model_id:
        raise ValueError("a model id must not be empty")
    return "".join(c if _PLAIN.fullmatch(c) else "".join(f"={b:02X}" for b in c.encode()) for c in model_id)


def model_id(slug: str) -> str:
    """The model id that `slug` was made from. Raises ValueError for text that `slug` never makes."""
    if not _SLUG.fullmatch(slug):
        raise ValueError(f"{slug!r} is no model slug: expected letters, digits, '_', '-' and '=XX'")
    raw = re.sub(r"=([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), slug).encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{slug!r} is no model slug: its escapes are not UTF-8") from error


def new_id() -> str:
    """A new random id for a gateway, replica, job or incarnation: 22 characters, safe in subjects and keys."""
    return secrets.token_urlsafe(16)


def check_token(text: str, what: str) -> str:
    """`text` unchanged if it can stand as one subject token. Raises ValueError naming `what` otherwise."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{what} {text!r} may hold only letters, digits, '_', '-' and '='")
    return text


# --- jobs ----------------------------------------------------------------------------------------------------

JOB_SUBJECTS = f"{PREFIX}.job.*.*"


def job_subject(model: str, job_class: JobClass) -> str:
    """The subject on which a job for this model id is published."""
    return f"{PREFIX}.job.{slug(model)}.{job_class}"


def parse_job_subject(subject: str) -> tuple[str, str]:
    """(model id, job class) of a subject made by `job_subject`. Raises ValueError for another."""
    prefix, _, rest = subject.partition(".job.")
    slug, _, job_class = rest.partition(".")
    if prefix != PREFIX or job_class not in JOB_CLASSES:
        raise ValueError(f"{subject!r} is no job subject")
    return model_id(slug), job_class


def job_consumer(model: str, job_class: JobClass) -> str:
    """The durable consumer that replicas of this model pull from."""
    return f"{job_class}-{slug(model)}"


PRIORITY_GROUP = "g"  # of every job consumer; a pull names it together with its priority 0 (most free) to 9


def pull_subject(model: str, job_class: JobClass) -> str:
    """The JetStream API subject of a pull on the model's consumer."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{JOBS}.{job_consumer(model, job_class)}"


def event_subject(model: str, kind: str) -> str:
    """The subject of a placement event; events of workers have no model."""
    return f"{PREFIX}.event.{slug(model) if model else '-'}.{kind}"


# --- gateways and replicas -----------------------------------------------------------------------------------


def delta_subject(gateway_id: str) -> str:
    """Where replicas publish the deltas of all jobs of this gateway."""
    return f"{PREFIX}.gw.{gateway_id}.tok"


def gateway_rpc(gateway_id: str) -> str:
    """Where a gateway answers claims and pings as the owner of its jobs."""
    return f"{PREFIX}.gw.{gateway_id}.rpc"


def replica_rpc(replica_id: str) -> str:
    """Where a replica's front answers ping, cancel, replay and confirm."""
    return f"{PREFIX}.rep.{replica_id}.rpc"


def no_responders(replica_id: str, reply: str) -> str:
    """The reply subject of a delta batch: receives the server's 503 when nobody listens to `reply`.

    The job's reply subject rides at the end, so that the front knows which owner is gone.
    """
    return f"{PREFIX}.rep.{replica_id}.nr.{reply}"


def gone_reply(replica_id: str, subject: str) -> str:
    """The reply subject inside a `no_responders` subject of this replica."""
    return subject.removeprefix(no_responders(replica_id, ""))


def worker_rpc(worker: str) -> str:
    """Where a host's agent answers pings."""
    return f"{PREFIX}.worker.{worker}.rpc"


def worker_count(worker: str) -> str:
    """Where one host counts the tokens of prompts, for models whose files only it has."""
    return f"{PREFIX}.worker.{worker}.count"


def worker_estimate(worker: str) -> str:
    """Where one host says what a model will take, for models whose files only some have or may fetch."""
    return f"{PREFIX}.worker.{worker}.estimate"


def responses_rpc(gateway_id: str) -> str:
    """Where a gateway is told to cancel a response that it works on in the background."""
    return f"{PREFIX}.gw.{gateway_id}.responses"


def response_moved(response: str) -> str:
    """Where it is said, without more words, that further events of a response are stored."""
    return f"{PREFIX}.response.{response}"


def response_events_key(response: str, number: int | str) -> str:
    """responses: a run of a response's events; ``*`` is every run."""
    return f"{response}.{number}"


PLACER_ENSURE = f"{PREFIX}.placer.ensure"  # only the placement leader listens, also to the next two
PLACER_EXPLAIN = f"{PREFIX}.placer.explain"
PLACER_WHAT_IF = f"{PREFIX}.placer.whatif"
JOB_FIND = f"{PREFIX}.gw.find"  # every gateway hears it; the one that knows the job answers
ESTIMATE = f"{PREFIX}.rpc.estimate"  # any worker answers: what a model will take
ESTIMATE_QUEUE = "estimate"
COUNT = f"{PREFIX}.rpc.count"  # any worker answers: how many tokens a prompt has
COUNT_QUEUE = "count"
EVENT_SUBJECTS = f"{PREFIX}.event.*.*"
DISCONNECTS = f"{PREFIX}.adv.disconnect"  # the server's own advisories about closed connections, imported


def client_name(kind: Literal["gateway", "replica", "worker", "cli"], ident: str) -> str:
    """The name a connection shows to the server, and by which a disconnect advisory is understood."""
    return f"{kind}:{ident}"


def parse_client_name(name: str) -> tuple[str, str]:
    """(kind, id) of a connection name; ("", name) for a stranger's."""
    kind, _, ident = name.partition(":")
    return (kind, ident) if ident else ("", name)


# --- buckets and keys ----------------------------------------------------------------------------------------


def bucket_stream(bucket: str) -> str:
    """The stream behind a key-value bucket."""
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    """The subject of a key."""
    return f"$KV.{bucket}.{key}"


def kv_key(subject: str) -> str:
    """The key of a subject made by `kv_subject`."""
    return subject.split(".", 2)[2]


def bucket_events(bucket: str) -> str:
    """The prefix under which the server republishes every change of a bucket."""
    return f"{PREFIX}.{bucket}.ev"


LEASE_PLACER = "lease.placer"


def worker_key(worker: str) -> str:
    """fleet: what a worker is."""
    return f"worker.{worker}"


def replica_key(replica_id: str) -> str:
    """fleet: what a replica is."""
    return f"replica.{replica_id}"


def gateway_key(gateway_id: str) -> str:
    """fleet: what a gateway is."""
    return f"gw.{gateway_id}"


def model_key(model: str) -> str:
    """plan: a model of the catalogue."""
    return f"model.{slug(model)}"


def intent_key(model: str) -> str:
    """plan: what operators want of a model."""
    return f"intent.{slug(model)}"


def want_key(worker: str) -> str:
    """plan: what the leader assigns to a worker."""
    return f"want.{worker}"


def drain_key(worker: str) -> str:
    """plan: that a worker is to be emptied."""
    return f"drain.{worker}"


def measured_key(model: str) -> str:
    """plan: what loads of a model took."""
    return f"measured.{slug(model)}"


def key_kind(key: str) -> tuple[str, str]:
    """(kind, rest) of a key: ``worker.gpu1`` is ("worker", "gpu1")."""
    kind, _, rest = key.partition(".")
    return kind, rest
