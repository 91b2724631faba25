"""Carries out the plan: one gateway at a time, by a lease; the others stand by.

Decisions are compare-and-set writes of ``want.<worker>`` under the leader's epoch. A leader that was deposed without
noticing does nothing: the lease is looked at before each write, the revision is part of it, agents refuse an older
epoch, and a new leader first writes every assignment anew under its own epoch, so that whatever its predecessor still
sends comes too late.

A plan is made when a record changed in a way that matters, when a gateway asks for a model, when the queue moved, and
at the moment that the last plan named. Everything that a plan depends on is gathered first; making it does no I/O.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Self

import msgspec

from gateway.placement.foresee import explain, foresee
from gateway.placement.history import History
from gateway.placement.journal import Journal
from gateway.placement.planner import Plan, plan
from gateway.placement.queues import Queues
from gateway.placement.sizes import Sizes
from gateway.placement.stir import Stir
from gateway.placement.view import Backlog, View
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus, Msg, Subscription
from shared.errors import BusError, WrongRevision
from shared.fleet import Fleet, Record
from shared.kv import Bucket
from shared.lease import Lease
from shared.messages import Ensure, Ensured, Explain, Explained, Foreseen, WhatIf, encode
from shared.records import RECORD_TTL_S, AssignmentRecord, IntentRecord
from shared.settings import EvictionSettings, PlacementSettings

DEBOUNCE_S = 0.05  # several changes come together
LOOK_S = 1.0  # between two looks at the queue
SETTLE_S = RECORD_TTL_S + 1.0  # after taking over or reconnecting, before an absent worker counts as lost
ANSWER_S = 0.7  # how long a gateway that asks for a model is kept for the plan's word on it; it waits for a second

log = logs.get(__name__)


class Leader:
    """A gateway's part in placement, from `async with` to its end."""

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        holder: str,
        *,
        placement: PlacementSettings | None = None,
        eviction: EvictionSettings | None = None,
        settle_s: float | None = None,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._placement = placement or PlacementSettings()
        self._eviction = eviction or EvictionSettings()
        self._lease = Lease(bus, names.LEASE_PLACER, holder)
        self._holder = holder
        self._plan_bucket = Bucket(bus, names.PLAN)
        self._settle_s = SETTLE_S if settle_s is None else settle_s
        self._wall: Callable[[], float] = time.time
        self._history = History()
        self._queues = Queues(bus)
        self._sizes = Sizes(bus, self._wake)
        self._journal = Journal(bus)
        self._stir = Stir()
        self._backlog: dict[str, Backlog] = {}
        self._next_look = 0.0  # monotonic
        self._changed = asyncio.Event()
        self._planned = asyncio.Condition()
        self._latest = Plan([])
        self._tasks = Tasks()
        self._since = 0.0  # monotonic: from when on absence is judged
        self._written: dict[str, int] = {}  # revisions that the mirror has not shown yet
        self._subscriptions: list[Subscription] = []

    @property
    def leads(self) -> bool:
        """Whether this gateway places models now."""
        return self._lease.held

    async def __aenter__(self) -> Self:
        self._fleet.on_change(self._on_record)
        self._fleet.on_refusal(self._on_refusal)
        self._bus.on_reconnect(self._on_reconnect)
        self._lease.on_change(self._on_lease)
        await self._lease.__aenter__()
        self._tasks.spawn(self._run(), "placement")
        self._tasks.spawn(self._journal.run(), "placement.journal")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.close()
        await self._sizes.close()
        await self._listen(False)
        await self._lease.close()

    # --- what makes it plan ----------------------------------------------------------------------------------

    def _on_record(self, key: str, record: Record | None) -> None:
        if self._lease.held:
            self._journal.changed(key, record)
            if isinstance(record, IntentRecord) and record.model not in self._fleet.models:
                self._journal.refused(*names.key_kind(key), "the catalogue does not have the model")
        if self._stir.matters(key, record):
            if names.key_kind(key)[0] == "model":
                self._next_look = 0.0  # its queue is to be there before its first replica
            self._changed.set()

    def _wake(self) -> None:
        self._changed.set()

    def _on_refusal(self, key: str, reason: str) -> None:
        kind, rest = names.key_kind(key)
        if self._lease.held:
            self._journal.refused(kind, rest, reason)

    def _on_lease(self, held: bool) -> None:
        self._since = time.monotonic()
        if held:
            self._journal.epoch = self._lease.epoch
            self._journal.saw(self._fleet.replicas, self._fleet.workers)
            self._journal.note("leads", reason=f"gateway {self._holder}")
            for key, reason in self._fleet.refused.items():
                self._on_refusal(key, reason)
        self._next_look = 0.0
        self._changed.set()

    async def _on_reconnect(self) -> None:
        self._since = time.monotonic()
        self._written.clear()  # should the bucket have lost a write, waiting for it would never end
        self._changed.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._changed.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._changed.clear()
            try:
                await self._listen(self._lease.held)
                self._history.observe(self._fleet, self._wall())  # by those that stand by, too
                if self._lease.held and self._is_current():
                    await self._decide()
            except BusError as error:
                log.warning("placement.delayed", error=str(error))
            except Exception:
                log.exception("placement.failed")

    def _pause_s(self) -> float:
        """Until the next look at the queue, or the moment that the plan named."""
        wake = self._latest.wake_at_s
        return min(LOOK_S, max(0.0, wake - self._wall())) if wake else LOOK_S

    def _is_current(self) -> bool:
        """Whether the mirror shows our own last writes: planning on older ones would only be refused."""
        self._written = {key: at for key, at in self._written.items() if self._fleet.revision(key) < at}
        return not self._written

    # --- planning --------------------------------------------------------------------------------------------

    async def _decide(self) -> None:
        await self._look()
        epoch, view = self._lease.epoch, self._view()
        if (obeyed := max((one.epoch for one in view.workers.values()), default=0)) > epoch:
            log.warning("placement.surpassed", epoch=epoch, obeyed=obeyed)
            self._lease.rise_above(obeyed)
            return
        self._journal.epoch = epoch
        self._sizes.learn(view)
        decided = plan(view, epoch, claim=True)
        if await self._write(decided):
            self._latest = decided
            self._journal.decided(decided)
            await self._remember()
        async with self._planned:
            self._planned.notify_all()

    async def _look(self) -> None:
        """At the queue, once a second; replicas pull from their model's queue as soon as they are ready."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        for model in list(self._fleet.models):
            for job_class in names.JOB_CLASSES:
                await self._bus.ensure_consumer(model, job_class)
        served = {one.model for one in self._fleet.replicas.values() if one.state in ("ready", "draining")}
        self._backlog = await self._queues.look(served)

    def _view(self) -> View:
        now = self._wall()
        self._history.observe(self._fleet, now)
        return self._history.view(
            self._fleet,
            self._backlog,
            self._sizes.of(self._fleet.models),
            now,
            unsized=self._sizes.open(self._fleet.models),
            is_settled=time.monotonic() - self._since > self._settle_s,
            placement=self._placement,
            eviction=self._eviction,
        )

    async def _write(self, decided: Plan) -> bool:
        """Carry it out. False: only in part, as the lease or a race was lost."""
        # As they were when the plan was made: the mirror goes on while the first of them is written.
        seen = {key: self._fleet.revision(key) for key in (names.want_key(one.worker) for one in decided.changes)}
        for record in decided.changes:
            key = names.want_key(record.worker)
            if not self._lease.held or record.epoch != self._lease.epoch:
                return False
            try:
                self._written[key] = await self._plan_bucket.update(key, encode(record), seen[key])
            except WrongRevision:
                # Somebody wrote in between: the mirror will show it, and the next plan starts from there.
                log.warning("placement.outrun", worker=record.worker)
                self._changed.set()
                return False
            self._log(record, decided)
        return True

    async def _remember(self) -> None:
        for record in self._history.measured(self._fleet, self._wall()):
            await self._plan_bucket.put(names.measured_key(record.model), encode(record))

    def _log(self, record: AssignmentRecord, decided: Plan) -> None:
        mine = [one for one in decided.decisions if one.worker == record.worker]
        log.info(
            "placement.assigned",
            worker=record.worker,
            epoch=record.epoch,
            generation=record.generation,
            models=",".join(one.model.id for one in record.models),
            reasons="; ".join(f"{one.kind} {one.model}: {one.reason}" for one in mine),
        )

    # --- questions -------------------------------------------------------------------------------------------

    async def _listen(self, wanted: bool) -> None:
        if wanted and not self._subscriptions:
            self._subscriptions = [
                await self._bus.subscribe(names.PLACER_ENSURE, self._on_ensure),
                await self._bus.subscribe(names.PLACER_EXPLAIN, self._on_explain),
                await self._bus.subscribe(names.PLACER_WHAT_IF, self._on_what_if),
            ]
        elif not wanted and self._subscriptions:
            subscriptions, self._subscriptions = self._subscriptions, []
            for subscription in subscriptions:
                await subscription.unsubscribe()

    async def _on_ensure(self, message: Msg) -> None:
        model = _decode_ensure(message.data).model
        if message.reply:
            self._tasks.spawn(self._answer(model, message.reply), "placement.ensure")

    async def _answer(self, model: str, reply: str) -> None:
        answer = self._ensure(model)
        if answer.state == "planned":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S), self._planned:
                    await self._planned.wait()
            verdict = self._latest.verdicts.get(model)
            if verdict is not None and verdict.state != "cold":
                answer = Ensured(verdict.state, verdict.reason)
        with contextlib.suppress(BusError):
            await self._bus.publish(reply, encode(answer))

    def _ensure(self, model: str) -> Ensured:
        intent = self._fleet.intents.get(model)
        # 1. What is not wanted will not come.
        if model not in self._fleet.models:
            return Ensured("unknown", "the catalogue does not have it")
        if intent is not None and intent.want == "unloaded":
            return Ensured("unloaded", f"{intent.by or 'an operator'} wants it unloaded")
        # 2. What is there, or on its way.
        states = {replica.state for replica in self._fleet.replicas_of(model)}
        for state in ("ready", "loading"):
            if state in states:
                return Ensured(state)
        # 3. What is to come. A replica that is leaving serves nobody who comes now.
        self._history.ask(model, self._wall())
        self._changed.set()
        return Ensured("planned", self._latest.reasons.get(model, ""))

    async def _on_explain(self, message: Msg) -> None:
        model = _decode_explain(message.data).model
        if not message.reply:
            return
        await self._sizes.find(self._view(), model)
        view = self._view()
        answer: Explained = explain(view, plan(view, self._lease.epoch), model)
        answer.leader, answer.epoch = self._holder, self._lease.epoch
        await self._bus.publish(message.reply, encode(answer))

    async def _on_what_if(self, message: Msg) -> None:
        question = _decode_what_if(message.data)
        if not message.reply:
            return
        await self._sizes.find(self._view(), question.name)
        answer: Foreseen = foresee(self._view(), question)
        await self._bus.publish(message.reply, encode(answer))


_decode_ensure = msgspec.json.Decoder(Ensure).decode
_decode_explain = msgspec.json.Decoder(Explain).decode
_decode_what_if = msgspec.json.Decoder(WhatIf).decode
