"""How many jobs wait for each model, and since when, from JetStream's own account of the queue."""

import base64
import datetime
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.placement.view import Backlog
from shared import names
from shared.bus import Bus
from shared.errors import ApiError

MAX_KNOWN = 10_000


class Queues:
    """Looks at the queue. What it learned of a waiting job's age is kept as long as that job is the first."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ages: dict[str, tuple[int, float]] = {}  # by consumer: up to where it delivered, age of the next

    async def look(self, served: set[str]) -> dict[str, Backlog]:
        """The backlog of every model that has any. Raises BusError.

        Of a model outside of `served`, also jobs that were taken and not finished wait: nobody works on them.
        """
        info = await self._bus.api(f"STREAM.INFO.{names.JOBS}", {})
        if not info["state"]["messages"]:
            self._ages.clear()
            return {}
        found: dict[str, Backlog] = {}
        offset = 0
        while True:  # the answer comes in pages
            page = await self._bus.api(f"CONSUMER.LIST.{names.JOBS}", {"offset": offset})
            consumers = page.get("consumers") or []
            for consumer in consumers:
                subject = consumer["config"].get("filter_subject", "")
                try:
                    model, _ = names.parse_job_subject(subject)
                except ValueError:
                    continue  # an operator's own
                pending, taken = int(consumer["num_pending"]), int(consumer["num_ack_pending"])
                queued = pending if model in served else pending + taken
                if not queued and not taken:
                    continue
                since = await self._age(consumer["name"], subject, int(consumer["delivered"]["stream_seq"]), pending)
                before = found.get(model, Backlog())
                found[model] = Backlog(
                    queued=before.queued + queued,
                    running=before.running + taken,
                    since_s=min((one for one in (before.since_s, since) if one), default=0.0),
                )
            offset += len(consumers)
            if not consumers or offset >= int(page.get("total", 0)):
                return found

    async def _age(self, consumer: str, subject: str, delivered: int, pending: int) -> float:
        """From when on the first job that waits does so, in unix seconds; 0 when there is none."""
        if not pending:
            return 0.0
        known = self._ages.get(consumer)
        if known is not None and known[0] == delivered:
            return known[1]
        request = {"seq": delivered + 1, "next_by_subj": subject}
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{names.JOBS}", request)
        except ApiError:
            return 0.0  # it was taken or taken back meanwhile
        at = _seconds(str(answer["message"]["time"])) - _held_s(answer["message"])
        if len(self._ages) >= MAX_KNOWN:
            self._ages.clear()
        self._ages[consumer] = (delivered, at)
        return at


class _Held(msgspec.Struct):
    held_s: float = 0.0


def _held_s(message: Mapping[str, Any]) -> float:
    """How long the job waited at its gateway before it was published; 0 for what is no job."""
    try:
        job = msgspec.json.decode(base64.b64decode(message.get("data", "")), type=_Held)
    except ValueError:
        return 0.0
    return max(0.0, job.held_s) if math.isfinite(job.held_s) else 0.0


def _seconds(text: str) -> float:
    """Unix seconds of a time as the server writes it; it has nanoseconds, of which Python reads six digits."""
    whole, _, rest = text.partition(".")
    digits = "".join(c for c in rest if c.isdigit())[:6] if rest else ""
    zone = "+00:00" if text.endswith("Z") else text[-6:]
    base = whole.removesuffix("Z") if not rest else whole
    return datetime.datetime.fromisoformat(f"{base}.{digits or '0'}{zone}").timestamp()
