"""The operator's commands against a fleet: look at it, and write intents. Nothing here talks to a worker."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from gateway.cli import intents
from gateway.cli.errors import CliError, ModelFailed, UnknownModel
from gateway.cli.progress import Row, model_progress
from gateway.cli.screen import Screen
from gateway.cli.tables import Backlog, Snapshot
from shared import messages, names
from shared.bus import Bus
from shared.errors import BusError
from shared.fleet import Fleet
from shared.records import MAX_REPLICAS, IntentRecord
from shared.settings import BusSettings

LOOK_S = 0.2  # how often a waiting command looks again, for what changes without a record
ASK_S = 2.0  # how often it asks the placement leader for a reason, and how long it waits for one
MAX_ASKED = 20  # models whose reasons a status asks for


@asynccontextmanager
async def connected(settings: BusSettings) -> AsyncIterator[tuple[Bus, Fleet]]:
    """The fleet behind these settings, with its mirror filled."""
    async with await Bus.connect(settings, kind="cli", ident=names.new_id(), wait=False) as bus, Fleet(bus) as fleet:
        yield bus, fleet


async def snapshot(settings: BusSettings) -> Snapshot:
    """The fleet as it is now."""
    async with connected(settings) as (bus, fleet):
        jobs = await backlog(bus)
        return Snapshot(
            workers=dict(fleet.workers),
            replicas=dict(fleet.replicas),
            gateways=dict(fleet.gateways),
            models=dict(fleet.models),
            intents=dict(fleet.intents),
            wants=dict(fleet.wants),
            backlog=jobs,
            reasons=await _reasons(bus, fleet, jobs),
        )


async def _reasons(bus: Bus, fleet: Fleet, jobs: dict[str, Backlog]) -> dict[str, str]:
    """Why models are not there that jobs wait for or that somebody wants loaded: asked without any effect."""
    wanted = {model for model, one in jobs.items() if one.queued}
    wanted |= {model for model, intent in fleet.intents.items() if intent.want == "loaded"}
    missing = [model for model in sorted(wanted & fleet.models.keys()) if not fleet.replicas_of(model)]
    answers = await asyncio.gather(*(_explained(bus, model) for model in missing[:MAX_ASKED]))
    return {model: reason for model, reason in zip(missing, answers, strict=False) if reason}


async def _explained(bus: Bus, model: str) -> str:
    try:
        request = messages.encode(messages.Explain(model))
        answer = await bus.request(names.PLACER_EXPLAIN, request, timeout_s=ASK_S)
        return msgspec.json.decode(answer, type=messages.Explained).reason
    except (BusError, msgspec.DecodeError):
        return ""


async def backlog(bus: Bus) -> dict[str, Backlog]:
    """Jobs in the queue, by model: a job leaves the stream when it is finished, so those taken count as running."""
    info = await bus.api(f"STREAM.INFO.{names.JOBS}", {"subjects_filter": names.JOB_SUBJECTS})
    total: Counter[str] = Counter()
    for subject, count in (info["state"].get("subjects") or {}).items():
        total[names.parse_job_subject(subject)[0]] += count
    taken = await _taken(bus) if total else Counter()
    return {
        model: Backlog(queued=max(0, count - taken[model]), running=min(count, taken[model]))
        for model, count in total.items()
    }


async def _taken(bus: Bus) -> Counter[str]:
    """Jobs that replicas hold, by model."""
    taken: Counter[str] = Counter()
    seen = 0
    while True:  # the answer comes in pages
        page = await bus.api(f"CONSUMER.LIST.{names.JOBS}", {"offset": seen})
        consumers: list[dict[str, Any]] = page.get("consumers") or []
        for consumer in consumers:
            if subject := consumer["config"].get("filter_subject"):
                taken[names.parse_job_subject(subject)[0]] += consumer["num_ack_pending"]
        seen += len(consumers)
        if not consumers or seen >= page["total"]:
            return taken


async def load(
    settings: BusSettings, model: str, *, on: list[str], replicas: int, wait: bool, timeout_s: float, screen: Screen
) -> None:
    """Want the model loaded; one that the catalogue lacks is added to it.

    Raises UnknownModel; with `wait`, returns when enough of it is ready, and raises ModelFailed or CliError (timeout).
    """
    async with connected(settings) as (bus, fleet):
        _check_workers(on, fleet)
        if model not in fleet.models:
            try:
                record = intents.named_model(model)
            except UnknownModel as error:
                raise UnknownModel(model, list(fleet.models)) from error
            if record.id not in fleet.models:
                await intents.put_model(bus, record)
            model = record.id
        before = {(worker.name, failure.at_s) for worker in fleet.workers.values() for failure in worker.failures}
        want = IntentRecord(model=model, want="loaded", on=on, replicas=replicas, by=intents.operator_name())
        await intents.put_intent(bus, want)
        if wait:
            await _wait_loaded(bus, fleet, want, before, timeout_s, screen)


def _check_workers(asked: list[str], fleet: Fleet) -> None:
    if unknown := sorted(set(asked) - set(fleet.workers)):
        raise CliError(f"no worker {', '.join(unknown)} (there are: {', '.join(sorted(fleet.workers)) or 'none'})")


async def _wait_loaded(
    bus: Bus, fleet: Fleet, want: IntentRecord, before: set[tuple[str, float]], timeout_s: float, screen: Screen
) -> None:
    deadline = time.monotonic() + timeout_s
    reasons = Reasons(bus)
    while True:
        workers = {name: worker for name, worker in fleet.workers.items() if not want.on or name in want.on}
        reason = await reasons.of(want.model)
        progress = model_progress(want.model, workers, fleet.replicas, reason=reason, ignore=before)
        screen.show([progress.row])
        if progress.num_ready >= min(want.replicas, max(1, len(workers))):
            if progress.num_ready < want.replicas:
                few = f"only {progress.num_ready} of {want.replicas} replicas could be placed"
                screen.say(f"{want.model}: {few}, one on each worker")
            return
        if progress.failure:
            raise ModelFailed(want.model, progress.failure.reason)
        if time.monotonic() > deadline:
            raise CliError(f"{want.model} is not loaded after {timeout_s:g} s: {progress.row.text}")
        await asyncio.sleep(LOOK_S)


async def unload(
    settings: BusSettings, model: str, *, on: list[str], wait: bool, timeout_s: float, screen: Screen
) -> None:
    """Want the model unloaded, from these workers or (without any) everywhere; running jobs are finished first.

    Raises UnknownModel, and with `wait` CliError (timeout).
    """
    async with connected(settings) as (bus, fleet):
        _check_workers(on, fleet)
        if model not in fleet.models:
            raise UnknownModel(model, list(fleet.models))
        holders = {replica.worker for replica in fleet.replicas_of(model)}
        keep = sorted(holders - set(on)) if on else []
        want = IntentRecord(
            model=model,
            want="loaded" if keep else "unloaded",
            on=keep,
            replicas=min(max(1, len(keep)), MAX_REPLICAS),
            by=intents.operator_name(),
        )
        await intents.put_intent(bus, want)
        deadline = time.monotonic() + timeout_s
        while wait:
            left = sorted(replica.worker for replica in fleet.replicas_of(model) if replica.worker not in keep)
            if not left:
                return
            where = ", ".join(left)
            screen.show([Row(name=model, state="busy", text=f"still on {where}")])
            if time.monotonic() > deadline:
                raise CliError(f"{model} is still loaded on {where} after {timeout_s:g} s")
            await asyncio.sleep(LOOK_S)


class Reasons:
    """How it stands with models that no worker has, as the placement leader says; asked every ASK_S seconds at most."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: dict[str, tuple[float, str]] = {}

    async def of(self, model: str) -> str:
        """The latest reason; empty when there is none or no leader."""
        at, reason = self._known.get(model, (-ASK_S, ""))
        if time.monotonic() - at >= ASK_S:
            try:
                request = messages.encode(messages.Ensure(model=model))
                answer = await self._bus.request(names.PLACER_ENSURE, request, timeout_s=1.0)
                ensured = msgspec.json.decode(answer, type=messages.Ensured)
                reason = f"{ensured.state}: {ensured.reason}" if ensured.reason else ensured.state
            except (BusError, msgspec.DecodeError):
                reason = ""
            self._known[model] = (time.monotonic(), reason)
        return reason
