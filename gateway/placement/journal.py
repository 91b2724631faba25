"""Every decision and every fact behind it, as events in a stream that keeps them for days."""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gateway.placement.planner import Plan, Verdict
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError
from shared.fleet import Record
from shared.messages import encode
from shared.records import EventKind, EventRecord, ReplicaRecord, WorkerRecord

MAX_UNSENT = 1000
SEND_S = 2.0
_NOTHING: Mapping[str, Any] = {}
_TOLD: dict[str, EventKind] = {"waiting": "waiting", "cannot_fit": "cannot_fit"}

log = logs.get(__name__)


class Journal:
    """Writes events. `run` sends them; what cannot be sent is dropped, oldest first, and said in the log."""

    def __init__(self, bus: Bus) -> None:
        self.epoch = 0
        self._bus = bus
        self._wall: Callable[[], float] = time.time
        self._unsent: deque[EventRecord] = deque(maxlen=MAX_UNSENT)
        self._some = asyncio.Event()
        self._told: dict[str, tuple[str, str]] = {}  # by model: state and shape of the reason last written
        self._replicas: dict[str, ReplicaRecord] = {}
        self._workers: dict[str, WorkerRecord] = {}

    def note(
        self, kind: EventKind, model: str = "", worker: str = "", reason: str = "", inputs: Mapping[str, Any] = _NOTHING
    ) -> None:
        """Write an event."""
        self._unsent.append(
            EventRecord(
                at_s=self._wall(),
                kind=kind,
                model=model,
                worker=worker,
                epoch=self.epoch,
                reason=reason,
                inputs=dict(inputs),
            )
        )
        self._some.set()

    def decided(self, decided: Plan) -> None:
        """The decisions of a plan that was carried out, and of models that must wait, what they wait for."""
        for one in decided.decisions:
            self.note(one.kind, one.model, one.worker, one.reason, one.inputs)
        self._told = {model: told for model, told in self._told.items() if model in decided.verdicts}
        for model, verdict in decided.verdicts.items():
            self._tell(model, verdict)

    def _tell(self, model: str, verdict: Verdict) -> None:
        told = (verdict.state, _shape(verdict.reason))
        if verdict.state not in _TOLD:
            self._told.pop(model, None)
        elif self._told.get(model) != told:
            self._told[model] = told
            self.note(
                _TOLD[verdict.state], model, str(verdict.inputs.get("worker", "")), verdict.reason, verdict.inputs
            )

    def saw(self, replicas: Mapping[str, ReplicaRecord], workers: Mapping[str, WorkerRecord]) -> None:
        """What is there when this gateway begins to lead: no news."""
        self._replicas = dict(replicas)
        self._workers = dict(workers)

    def changed(self, key: str, record: Record | None) -> None:
        """A record changed: what of it is a fact worth keeping?"""
        kind, ident = names.key_kind(key)
        if isinstance(record, ReplicaRecord):
            self._replica(record)
        elif isinstance(record, WorkerRecord):
            self._worker(record)
        elif kind == "replica" and ident in self._replicas:
            before = self._replicas.pop(ident)
            self.note("gone", before.model, before.worker, f"it was {before.state}", {"replica": ident})
        elif kind == "worker" and ident in self._workers:
            del self._workers[ident]
            self.note("lost", worker=ident, reason="its record is gone")

    def _worker(self, record: WorkerRecord) -> None:
        before = self._workers.get(record.name)
        self._workers[record.name] = record
        if before is None or before.incarnation != record.incarnation:
            self.note("joined", worker=record.name, reason=f"{len(record.devices)} devices on {record.host}")
        known = {(one.model, one.at_s) for one in before.failures} if before is not None else set()
        for failure in record.failures:
            if (failure.model, failure.at_s) not in known:
                figures = {"attempts": failure.attempts, "retry_at_s": failure.retry_at_s, "kind": failure.kind}
                if failure.needed_bytes:
                    figures |= {"needed_bytes": failure.needed_bytes, "had_bytes": failure.free_bytes}
                self.note("failed", failure.model, record.name, failure.reason, figures)

    def _replica(self, record: ReplicaRecord) -> None:
        before = self._replicas.get(record.id)
        self._replicas[record.id] = record
        if before is not None and before.state == record.state:
            return
        if record.state == "loading":
            self.note("loading", record.model, record.worker, "", {"replica": record.id})
        elif record.state == "ready":
            figures = {"load_s": record.load_s, "reserved_bytes": record.reserved_bytes, "replica": record.id}
            self.note("ready", record.model, record.worker, f"loaded in {record.load_s:.1f} s", figures)
        elif record.state == "failed":
            self.note("failed", record.model, record.worker, record.reason, {"replica": record.id})

    def refused(self, kind: str, ident: str, reason: str) -> None:
        """Somebody wrote what counts as not written."""
        model = ""
        if kind in ("model", "intent"):
            with contextlib.suppress(ValueError):
                model = names.model_id(ident)
        self.note("refused", model, reason=f"{kind}.{ident}: {reason}")

    async def run(self) -> None:
        """Send, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._unsent:
                event = self._unsent[0]
                try:
                    subject = names.event_subject(event.model, event.kind)
                    await self._bus.request_message(subject, encode(event), timeout_s=SEND_S)
                except BusError as error:
                    log.warning("event.unsent", kind=event.kind, model=event.model, error=str(error))
                if self._unsent and self._unsent[0] is event:
                    self._unsent.popleft()


def _shape(reason: str) -> str:
    """A reason without its figures, which change all the time."""
    return re.sub(r"[0-9.]+", "#", reason)
