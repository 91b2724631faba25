"""How far a model is on its way to being loaded: pure functions from the fleet's records to something to show."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from shared.records import Failure, ReplicaRecord, WorkerRecord

State = Literal["waiting", "busy", "ready", "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of progress."""

    name: str
    state: State
    text: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelProgress:
    """A model between intent and service."""

    row: Row
    num_ready: int
    num_loading: int
    failure: Failure | None = None  # set when nothing of it runs or loads, and a worker says why


def model_progress(
    model: str,
    workers: Mapping[str, WorkerRecord],
    replicas: Mapping[str, ReplicaRecord],
    *,
    reason: str = "",
    ignore: Collection[tuple[str, float]] = (),
) -> ModelProgress:
    """What these workers say of `model`.

    `reason` is the placement leader's word while no worker has it. `ignore` holds (worker, at_s) of failures that were
    there before and do not count.
    """
    mine = [replica for replica in replicas.values() if replica.model == model and replica.worker in workers]
    ready = [replica for replica in mine if replica.state == "ready"]
    loading = [replica for replica in mine if replica.state == "loading"]
    failure = None if ready or loading else _failure(model, workers, mine, ignore)
    if ready:
        row = Row(name=model, state="ready", text=f"on {', '.join(sorted(replica.worker for replica in ready))}")
    elif loading:
        replica = max(loading, key=lambda replica: replica.since_s)
        row = Row(
            name=model,
            state="busy",
            text=f"{replica.stage or 'loading'} on {replica.worker}",
            done_bytes=replica.done_bytes,
            total_bytes=replica.total_bytes,
        )
    elif failure:
        row = Row(name=model, state="failed", text=failure.reason)
    else:
        row = Row(name=model, state="waiting", text=reason or "waiting for a worker")
    return ModelProgress(row=row, num_ready=len(ready), num_loading=len(loading), failure=failure)


def _failure(
    model: str,
    workers: Mapping[str, WorkerRecord],
    mine: Collection[ReplicaRecord],
    ignore: Collection[tuple[str, float]],
) -> Failure | None:
    found = [
        failure
        for worker in workers.values()
        for failure in worker.failures
        if failure.model == model and (worker.name, failure.at_s) not in ignore
    ]
    if found:
        return max(found, key=lambda failure: failure.at_s)
    for replica in mine:
        if replica.state == "failed":
            return Failure(model=model, reason=replica.reason or "no reason given", at_s=replica.since_s)
    return None


def megabytes(num_bytes: int) -> str:
    """A size for people: 12.3 MB, 1.50 GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def describe(row: Row) -> str:
    """The row's text, with the bytes where there are any."""
    if row.state == "busy" and row.total_bytes:
        return f"{row.text}: {megabytes(row.done_bytes)} of {megabytes(row.total_bytes)}"
    return row.text
