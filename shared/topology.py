"""The stream and the two buckets: what they are configured to be, and how they come to be so."""

import asyncio
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import ApiError, BusError, BusTimeout, BusUnavailable, NoResponders

_S = 1_000_000_000
_NAME_IN_USE = 10058
_NOT_FOUND = 10059
READY_S = 15.0  # JetStream answers about a second after a cluster starts

log = logs.get(__name__)


class Topology(BaseModel):
    """What may be chosen about the streams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(default=1, ge=1, le=5)  # copies in a cluster
    jobs_storage: Literal["file", "memory"] = "file"  # memory: prompts never rest on a disk
    jobs_max_bytes: int = Field(default=2 << 30, gt=0)
    jobs_per_subject: int = Field(default=4096, gt=0)  # hard limit of queued and running jobs of a model and class
    jobs_max_age_s: int = Field(default=3600, ge=120)
    bucket_max_bytes: int = Field(default=256 << 20, gt=0)
    events_max_age_s: int = Field(default=7 * 86400, ge=60)
    events_max_bytes: int = Field(default=256 << 20, gt=0)
    responses_max_age_s: int = Field(default=86400, ge=60)  # how long a stored response can be fetched
    responses_max_bytes: int = Field(default=512 << 20, gt=0)  # of all of them; when full, the oldest go first


async def ensure(bus: Bus, topology: Topology | None = None) -> None:
    """Create the streams, or change them to what they should be. Safe to call by many at once, and again.

    Waits for JetStream up to 15 s. Raises ApiError when the server refuses, BusUnavailable when it stays away.
    """
    for config in configs(topology or Topology()):
        await _ensure(bus, config)


def configs(topology: Topology) -> list[dict[str, Any]]:
    """The streams as JetStream's interface takes them."""
    buckets = [_bucket(topology, names.FLEET, history=1), _bucket(topology, names.PLAN, history=10)]
    return [_jobs(topology), *buckets, _events(topology), _responses(topology)]


def _jobs(topology: Topology) -> dict[str, Any]:
    return {
        "name": names.JOBS,
        "subjects": [names.JOB_SUBJECTS],
        "retention": "workqueue",
        "storage": topology.jobs_storage,
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": topology.jobs_per_subject,
        "max_bytes": topology.jobs_max_bytes,
        "max_age": topology.jobs_max_age_s * _S,
        "duplicate_window": 120 * _S,
        "allow_msg_ttl": True,
        "allow_direct": True,
        "num_replicas": topology.replicas,
    }


def _events(topology: Topology) -> dict[str, Any]:
    return {
        "name": names.EVENTS,
        "subjects": [names.EVENT_SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": topology.events_max_age_s * _S,
        "max_bytes": topology.events_max_bytes,
        "duplicate_window": 120 * _S,
        "allow_direct": True,
        "num_replicas": topology.replicas,
    }


def _responses(topology: Topology) -> dict[str, Any]:
    """A bucket that forgets: prompts rest in it, on the same storage as in the queue."""
    config = _bucket(topology, names.RESPONSES, history=1) | {
        "storage": topology.jobs_storage,
        "discard": "old",
        "max_age": topology.responses_max_age_s * _S,
        "max_bytes": topology.responses_max_bytes,
    }
    del config["republish"]  # nobody mirrors it
    return config


def _bucket(topology: Topology, bucket: str, history: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": names.bucket_stream(bucket),
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": history,
        "max_bytes": topology.bucket_max_bytes,
        "duplicate_window": 120 * _S,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "republish": {"src": f"$KV.{bucket}.>", "dest": f"{names.bucket_events(bucket)}.>"},
        "num_replicas": topology.replicas,
    }
    if bucket == names.FLEET:
        # Without a marker nobody would hear of an expiry.
        config |= {"allow_msg_ttl": True, "subject_delete_marker_ttl": 60 * _S}
    return config


async def _ensure(bus: Bus, config: dict[str, Any]) -> None:
    name = config["name"]
    deadline = time.monotonic() + READY_S
    while True:
        try:
            info = await _info(bus, name)
            if info is None:
                await _create(bus, config)
                log.info("stream.created", stream=name)
            elif changed := {key for key, value in config.items() if info["config"].get(key, _NONE.get(key)) != value}:
                await bus.api(f"STREAM.UPDATE.{name}", info["config"] | config)
                log.info("stream.updated", stream=name, changed=",".join(sorted(changed)))
            return
        except ApiError as error:
            if error.err_code != _NAME_IN_USE and error.code != 503:
                raise
            problem: BusError = error  # somebody was faster, or JetStream is not ready: look again
        except (NoResponders, BusTimeout, BusUnavailable) as error:
            problem = error
        if time.monotonic() > deadline:
            raise BusUnavailable(f"JetStream did not give the stream {name}: {problem}") from problem
        await asyncio.sleep(0.1)


# What the server leaves out of its answer when it is so.
_NONE: dict[str, Any] = {"discard_new_per_subject": False, "allow_msg_ttl": False, "republish": None}


async def _info(bus: Bus, name: str) -> dict[str, Any] | None:
    try:
        return await bus.api(f"STREAM.INFO.{name}", {})
    except ApiError as error:
        if error.err_code == _NOT_FOUND:
            return None
        raise


async def _create(bus: Bus, config: dict[str, Any]) -> None:
    # Sequences start at the time of creation in milliseconds, so that they stay above all earlier ones when a store
    # is lost and the stream made anew: fencing numbers made from them keep growing, mirrors notice, and a gateway
    # that deletes a message of the lost store by its number never hits another job's.
    first = {"first_seq": time.time_ns() // 1_000_000}
    await bus.api(f"STREAM.CREATE.{config['name']}", config | first, timeout_s=5.0)
