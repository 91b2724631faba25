"""Asks the placement leader for its reasons, and the gateways for a job; puts the answers into words."""

import time
from typing import Any

import msgspec

from gateway.cli.errors import CliError
from gateway.cli.events import as_line, read
from gateway.cli.operate import connected
from gateway.cli.progress import megabytes
from shared import names
from shared.bus import Bus
from shared.errors import BusError, BusTimeout, NoResponders
from shared.messages import Explain, Explained, FindJob, Foreseen, FoundJob, WhatIf, encode
from shared.records import EventRecord
from shared.settings import BusSettings

CHANGES = ("load", "unload", "drain", "lose")
ASK_S = 3.0
FIND_S = 1.0  # gateways that do not know a job say nothing
JOB_ID = 22  # characters; what clients are told has a prefix before it
LATEST = 20  # events of a model that are shown
RECENT_S = 86_400.0


async def explain(settings: BusSettings, what: str) -> dict[str, Any]:
    """What is known of a model or a job. Raises CliError when it is neither."""
    async with connected(settings) as (bus, fleet):
        model = next((one.id for one in fleet.models.values() if what == one.id or what in one.aliases), "")
        facts: dict[str, Any] = {}
        if not model:
            found = await _find(bus, what[-JOB_ID:])
            if found is None:
                known = ", ".join(sorted(fleet.models)) or "none"
                raise CliError(
                    f"{what!r} is neither a model of the catalogue ({known}) nor a request that a gateway remembers."
                )
            facts["job"], model = msgspec.to_builtins(found), found.model
        explained = await _ask(bus, names.PLACER_EXPLAIN, encode(Explain(model)), Explained)
        events = await read(bus, time.time() - RECENT_S, model)
        facts["model"] = {"id": model, **msgspec.to_builtins(explained)}
        facts["events"] = [msgspec.to_builtins(event) for event in events[-LATEST:]]
        return facts


async def foresee(settings: BusSettings, change: str, name: str) -> dict[str, Any]:
    """What the placement leader would do."""
    question = msgspec.convert({"change": change, "name": name}, WhatIf)
    async with connected(settings) as (bus, _):
        foreseen = await _ask(bus, names.PLACER_WHAT_IF, encode(question), Foreseen)
    if foreseen.problem:
        raise CliError(f"{foreseen.problem}.")
    return {"steps": foreseen.steps, "states": foreseen.states}


async def _find(bus: Bus, job: str) -> FoundJob | None:
    try:
        return msgspec.json.decode(
            await bus.request(names.JOB_FIND, encode(FindJob(job)), timeout_s=FIND_S), type=FoundJob
        )
    except (BusTimeout, NoResponders):
        return None


async def _ask(bus: Bus, subject: str, request: bytes, kind: "type[Explained] | type[Foreseen]") -> Any:
    try:
        return msgspec.json.decode(await bus.request(subject, request, timeout_s=ASK_S), type=kind)
    except NoResponders:
        raise CliError(
            "no gateway leads placement at the moment. Is one running? Try again in a few seconds."
        ) from None
    except BusError as error:
        raise CliError(f"the placement leader did not answer: {error}") from error


def as_text(facts: dict[str, Any]) -> str:
    """For people."""
    lines: list[str] = []
    if job := facts.get("job"):
        lines += _job_lines(job)
    model = facts["model"]
    lines.append(f"{model['id']} is {model['state'].replace('_', ' ')}: {model.get('reason') or 'no reason given'}")
    inputs = model.get("inputs") or {}
    if inputs:
        lines.append("  " + ", ".join(f"{name} {_figure(name, value)}" for name, value in inputs.items()))
    for one in model.get("candidates") or []:
        where = f"{one['worker']} {one.get('device', '')}".strip()
        room = f"{megabytes(one.get('free_bytes', 0))} of {megabytes(one.get('total_bytes', 0))} free"
        lines.append(f"  {where}: {one['verdict'] or 'nothing speaks against it'} ({room})")
    if facts["events"]:
        lines.append("latest events:")
        lines += [f"  {as_line(msgspec.convert(event, EventRecord))}" for event in facts["events"]]
    return "\n".join(lines)


def _job_lines(job: dict[str, Any]) -> list[str]:
    where = f" on {job['worker']}" if job.get("worker") else ""
    ahead = f", {job['ahead']} jobs before it" if job.get("ahead") is not None and job["state"] == "queued" else ""
    lines = [
        f"request {job['job']} for {job['model']} is {job['state']}{where}{ahead}: attempt {job.get('attempt', 1)}, "
        f"{job.get('tokens', 0)} tokens, {job.get('age_s', 0.0):.1f} s old, at gateway {job['gateway']}"
    ]
    if job.get("moves"):
        lines.append(f"  moved to another replica: {', '.join(job['moves'])}")
    if job.get("error"):
        lines.append(f"  {job['error']}")
    return lines


def _figure(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return megabytes(int(value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def steps_as_text(foreseen: dict[str, Any]) -> str:
    """For people."""
    steps, states = foreseen["steps"], foreseen["states"]
    lines = [f"{number}. {step}" for number, step in enumerate(steps, 1)] or ["nothing would be done"]
    if states:
        lines.append("then:")
        lines += [f"  {model}: {state}" for model, state in sorted(states.items())]
    return "\n".join(lines)
