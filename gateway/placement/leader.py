"""Carries out the plan: one gateway at a time, by a lease; the others stand by.

Decisions are compare-and-set writes of ``want.<worker>`` under the leader's epoch. A leader that was deposed without
noticing writes nothing: the lease is looked at before each write, the revision is part of it, and agents refuse an
older epoch.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Self

import msgspec

from gateway.placement.planner import Plan, View, plan
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError, WrongRevision
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.lease import Lease
from shared.messages import Ensure, Ensured, encode
from shared.records import RECORD_TTL_S, AssignmentRecord

DEBOUNCE_S = 0.05  # several changes come together
LOOK_S = 1.0  # without a change: failures expire
SETTLE_S = RECORD_TTL_S + 1.0  # after taking over or reconnecting, before an absent worker counts as lost
AVOID_S = 60.0  # a worker that failed for good with a model is not tried again before this
MAX_DEMAND = 10_000

log = logs.get(__name__)
_decode_ensure = msgspec.json.Decoder(Ensure).decode


class Leader:
    """A gateway's part in placement, from `async with` to its end."""

    def __init__(self, bus: Bus, fleet: Fleet, holder: str, *, settle_s: float = SETTLE_S) -> None:
        self._bus = bus
        self._fleet = fleet
        self._lease = Lease(bus, names.LEASE_PLACER, holder)
        self._plan_bucket = Bucket(bus, names.PLAN)
        self._settle_s = settle_s
        self._wall: Callable[[], float] = time.time
        self._changed = asyncio.Event()
        self._tasks = Tasks()
        self._since = 0.0  # monotonic: from when on absence is judged
        self._demand: set[str] = set()
        self._avoid: dict[tuple[str, str], float] = {}  # until, unix time
        self._reasons: dict[str, str] = {}
        self._written: dict[str, int] = {}  # revisions that the mirror has not shown yet
        self._subscription: Subscription | None = None

    @property
    def leads(self) -> bool:
        """Whether this gateway places models now."""
        return self._lease.held

    async def __aenter__(self) -> Self:
        self._fleet.on_change(lambda key, record: self._changed.set())
        self._bus.on_reconnect(self._on_reconnect)
        self._lease.on_change(self._on_lease)
        await self._lease.__aenter__()
        self._tasks.spawn(self._run(), "placement")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.close()
        await self._listen(False)
        await self._lease.close()

    def _on_lease(self, held: bool) -> None:
        self._since = time.monotonic()
        self._changed.set()

    async def _on_reconnect(self) -> None:
        self._since = time.monotonic()
        self._written.clear()  # should the bucket have lost a write, waiting for it would never end
        self._changed.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._changed.clear()
            try:
                await self._listen(self._lease.held)
                if self._lease.held and self._is_current():
                    await self._decide()
                    await self._open_queues()
            except BusError as error:
                log.warning("placement.delayed", error=str(error))
            except Exception:
                log.exception("placement.failed")

    def _is_current(self) -> bool:
        """Whether the mirror shows our own last writes: planning on older ones would only be refused."""
        self._written = {key: at for key, at in self._written.items() if self._fleet.revision(key) < at}
        return not self._written

    async def _decide(self) -> None:
        decided = plan(self._view(), self._lease.epoch)
        self._reasons = decided.reasons
        self._demand -= {
            model for want in self._fleet.wants.values() for model in (one.model.id for one in want.models)
        }
        await self._write(decided)

    async def _write(self, decided: Plan) -> None:
        for record in decided.changes:
            key = names.want_key(record.worker)
            if not self._lease.held:
                return
            try:
                self._written[key] = await self._plan_bucket.update(key, encode(record), self._fleet.revision(key))
            except WrongRevision:
                # Somebody wrote in between: the mirror will show it, and the next plan starts from there.
                log.warning("placement.outrun", worker=record.worker)
                return
            self._log(record, decided)

    async def _open_queues(self) -> None:
        """Replicas pull from their model's queue as soon as they are ready, also before its first job."""
        for model in list(self._fleet.models):
            for job_class in names.JOB_CLASSES:
                await self._bus.ensure_consumer(model, job_class)

    def _log(self, record: AssignmentRecord, decided: Plan) -> None:
        models = [assigned.model.id for assigned in record.models]
        reasons = {model: decided.reasons[model] for model in models if model in decided.reasons}
        log.info(
            "placement.assigned",
            worker=record.worker,
            epoch=record.epoch,
            generation=record.generation,
            models=",".join(models),
            reasons="; ".join(f"{model}: {reason}" for model, reason in reasons.items()),
        )

    def _view(self) -> View:
        fleet, now = self._fleet, self._wall()
        self._remember_failures(now)
        is_settled = time.monotonic() - self._since > self._settle_s
        return View(
            models=dict(fleet.models),
            intents=dict(fleet.intents),
            workers=dict(fleet.workers),
            replicas=dict(fleet.replicas),
            wants=dict(fleet.wants),
            demand=set(self._demand),
            lost={worker for worker in fleet.wants if is_settled and worker not in fleet.workers},
            avoid=set(self._avoid),
        )

    def _remember_failures(self, now: float) -> None:
        """A failure leaves the worker's record with the assignment; without memory, two failing workers would swap."""
        self._avoid = {pair: until for pair, until in self._avoid.items() if until > now}
        for worker in self._fleet.workers.values():
            for failure in worker.failures:
                until = failure.retry_at_s or failure.at_s + AVOID_S
                if until > now:
                    self._avoid[worker.name, failure.model] = until

    # --- jobs that wait for a model --------------------------------------------------------------------------

    async def _listen(self, wanted: bool) -> None:
        if wanted and self._subscription is None:
            self._subscription = await self._bus.subscribe(names.PLACER_ENSURE, self._on_ensure)
        elif not wanted and self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.unsubscribe()

    async def _on_ensure(self, message: Msg) -> None:
        model = _decode_ensure(message.data).model
        if message.reply:
            await self._bus.publish(message.reply, encode(self._ensure(model)))

    def _ensure(self, model: str) -> Ensured:
        intent = self._fleet.intents.get(model)
        # 1. What is not wanted will not come.
        if model not in self._fleet.models:
            return Ensured("unknown", "the catalogue does not have it")
        if intent is not None and intent.want == "unloaded":
            return Ensured("unloaded", f"{intent.by or 'an operator'} wants it unloaded")
        # 2. What is there, or on its way.
        states = {replica.state for replica in self._fleet.replicas_of(model)}
        for state in ("ready", "loading", "draining"):
            if state in states:
                return Ensured(state)
        # 3. What is to come.
        if len(self._demand) < MAX_DEMAND and model not in self._demand:
            self._demand.add(model)
            self._changed.set()
        return Ensured("planned", self._reasons.get(model, ""))
