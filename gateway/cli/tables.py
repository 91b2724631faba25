"""The fleet as a person wants to see it: from records to rows, to tables, to JSON. No NATS in here."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from gateway.cli.progress import describe, megabytes, model_progress
from shared.records import (
    AssignmentRecord,
    GatewayRecord,
    IntentRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Jobs of one model in the queue."""

    queued: int = 0  # no replica has taken them
    running: int = 0  # taken, not yet finished


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything `plexus status` and `plexus models` show."""

    workers: Mapping[str, WorkerRecord]
    replicas: Mapping[str, ReplicaRecord]
    gateways: Mapping[str, GatewayRecord]
    models: Mapping[str, ModelRecord]
    intents: Mapping[str, IntentRecord]
    wants: Mapping[str, AssignmentRecord]
    backlog: Mapping[str, Backlog]  # by model
    reasons: Mapping[str, str] = field(default_factory=dict)  # of models that wait, as the placement leader says


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model."""

    model: str
    source: str
    want: str  # loaded, unloaded or nothing
    state: str
    ready: int
    loading: int
    running: int
    slots: int
    queued: int
    detail: str


def model_rows(snapshot: Snapshot) -> list[ModelRow]:
    """Every model of the catalogue, and those that have jobs without being in it."""
    rows = []
    for model in sorted({*snapshot.models, *snapshot.backlog}):
        progress = model_progress(model, snapshot.workers, snapshot.replicas)
        intent = snapshot.intents.get(model)
        backlog = snapshot.backlog.get(model, Backlog())
        mine = [replica for replica in snapshot.replicas.values() if replica.model == model]
        loaded_on = {replica.worker for replica in mine}
        known = snapshot.models.get(model)
        state = {"ready": "ready", "busy": "loading", "failed": "failed", "waiting": "cold"}[progress.row.state]
        if state == "cold" and any(
            assigned.model.id == model and worker not in loaded_on
            for worker, want in snapshot.wants.items()
            for assigned in want.models
            if worker in snapshot.workers
        ):
            state = "assigned"
        rows.append(
            ModelRow(
                model=model,
                source=known.source if known else "not in the catalogue",
                want=intent.want if intent else "",
                state=state,
                ready=progress.num_ready,
                loading=progress.num_loading,
                running=backlog.running,
                slots=sum(replica.slots for replica in mine if replica.state == "ready"),
                queued=backlog.queued,
                detail=snapshot.reasons.get(model, "") if state in ("cold", "assigned") else describe(progress.row),
            )
        )
    return rows


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "workers": [msgspec.to_builtins(worker) for worker in _sorted(snapshot.workers)],
        "replicas": [msgspec.to_builtins(replica) for replica in _sorted(snapshot.replicas)],
        "gateways": [msgspec.to_builtins(gateway) for gateway in _sorted(snapshot.gateways)],
        "models": [asdict(row) for row in model_rows(snapshot)],
        "queued": sum(backlog.queued for backlog in snapshot.backlog.values()),
        "running": sum(backlog.running for backlog in snapshot.backlog.values()),
    }


def status_view(snapshot: Snapshot) -> RenderableType:
    """Workers and devices, replicas, models with their queues, gateways."""
    return Group(
        _table(
            "workers",
            ("worker", "host", "state", "device", "memory granted", "free now", "cores", "replicas"),
            (row for worker in _sorted(snapshot.workers) for row in _worker_rows(worker)),
        ),
        _table(
            "replicas",
            ("model", "worker", "state", "device", "memory", "running", "cache free", "up"),
            (_replica_row(replica) for replica in _sorted(snapshot.replicas)),
        ),
        models_view(snapshot),
        _table(
            "gateways",
            ("gateway", "host", "url", "in flight"),
            ((gateway.id, gateway.host, gateway.url, str(gateway.in_flight)) for gateway in _sorted(snapshot.gateways)),
        ),
    )


def models_view(snapshot: Snapshot, *, sources: bool = False) -> RenderableType:
    """The catalogue, its state and its queues."""
    return _table(
        "models",
        ("model", *(("source",) if sources else ()), "wanted", "state", "replicas", "running", "queued", "detail"),
        (
            (
                row.model,
                *((row.source,) if sources else ()),
                row.want or "-",
                row.state,
                str(row.ready),
                f"{row.running} of {row.slots}" if row.slots else str(row.running),
                str(row.queued),
                row.detail,
            )
            for row in model_rows(snapshot)
        ),
    )


def _worker_rows(worker: WorkerRecord) -> Iterable[tuple[str, ...]]:
    cores = f"{min(worker.reserved_cores, worker.cores)} of {worker.cores}"  # replicas share them
    first: tuple[str, ...] = (worker.name, worker.host, worker.state)
    last: tuple[str, ...] = (cores, str(len(worker.replicas)))
    for device in worker.devices:
        granted = f"{megabytes(device.reserved_bytes)} of {megabytes(device.total_bytes)}"
        memory = (granted, megabytes(device.free_bytes))
        yield *first, f"{device.id} {device.name}".strip(), *memory, *last
        first, last = ("", "", ""), ("", "")
    if not worker.devices:
        yield *first, "none", "", "", *last


def _replica_row(replica: ReplicaRecord) -> tuple[str, ...]:
    cache = f"{100 * replica.blocks_free // replica.blocks_total} %" if replica.blocks_total else "-"
    state = f"{replica.state}: {replica.reason or replica.stage}" if replica.reason or replica.stage else replica.state
    return (
        replica.model,
        replica.worker,
        state,
        ", ".join(replica.devices),
        megabytes(replica.reserved_bytes),
        f"{replica.running} of {replica.slots}",
        cache,
        _duration(replica.at_s - replica.since_s) if replica.since_s else "-",
    )


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> RenderableType:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not table.row_count:
        table.add_row("none")
    return Group(table, "")


def _sorted(records: Mapping[str, Any]) -> list[Any]:
    return [records[key] for key in sorted(records)]
