"""Reads the stream of placement events: those of some time, and those that come."""

import asyncio
import datetime
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.cli.errors import CliError
from gateway.cli.operate import connected
from shared import names
from shared.bus import Bus, Msg
from shared.errors import ApiError
from shared.records import EventRecord
from shared.settings import BusSettings

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_decode = msgspec.json.Decoder(EventRecord).decode


def seconds(text: str) -> float:
    """A span of time such as 90s, 10m, 2h or 3d, in seconds; 0 for nothing. Raises CliError."""
    if not text:
        return 0.0
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        raise CliError(f"{text!r} is no span of time. Write it like 90s, 10m, 2h or 3d.")
    return float(number) * _UNITS[unit]


async def read(bus: Bus, since_s: float, model: str = "") -> list[EventRecord]:
    """The events from a moment on, in order. Each is one request: this is for a person, not for a machine."""
    found: list[EventRecord] = []
    subject = names.event_subject(model, "*") if model else names.EVENT_SUBJECTS
    begin = datetime.datetime.fromtimestamp(since_s, datetime.UTC).isoformat()
    request: dict[str, Any] = {"start_time": begin, "next_by_subj": subject}
    while True:
        try:
            answer = await bus.request_message(
                f"$JS.API.DIRECT.GET.{names.EVENTS}", msgspec.json.encode(request), timeout_s=2.0
            )
        except ApiError:
            return found
        headers: dict[str, str] = answer.headers or {}
        if names.SEQUENCE not in headers:
            return found
        event = _decode(answer.data)
        if event.at_s >= since_s:
            found.append(event)
        request = {"seq": int(headers[names.SEQUENCE]) + 1, "next_by_subj": subject}


async def follow(
    settings: BusSettings, ago_s: float, model: str, wait: bool, show: Callable[[EventRecord], None]
) -> None:
    """Show the events of the last `ago_s` seconds and, if wanted, those that come, for ever."""
    async with connected(settings) as (bus, _):
        coming: asyncio.Queue[Msg] = asyncio.Queue()
        subject = names.event_subject(model, "*") if model else names.EVENT_SUBJECTS
        if wait:  # before the past is read, so that nothing falls in between
            await bus.subscribe(subject, coming.put)
            await bus.flush()
        shown: set[tuple[float, str, str]] = set()
        if ago_s:
            for event in await read(bus, time.time() - ago_s, model):
                shown.add((event.at_s, event.kind, event.model))
                show(event)
        while wait:
            event = _decode((await coming.get()).data)
            if (event.at_s, event.kind, event.model) not in shown:
                show(event)


def as_line(event: EventRecord) -> str:
    """For people."""
    at = datetime.datetime.fromtimestamp(event.at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    what = " ".join(word for word in (event.kind.replace("_", " "), event.model) if word)
    where = f" on {event.worker}" if event.worker else ""
    return f"{at}  {what}{where}{': ' + event.reason if event.reason else ''}"


def as_json(event: EventRecord) -> str:
    """For scripts."""
    return msgspec.json.encode(event).decode()
