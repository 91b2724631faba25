"""Keeps one assigned model running on this host: from its files to a front, again and again, until it is not wanted.

One attempt, in order: (1) files, (2) size and grant, (3) the device's turn to load, (4) a front that loads and serves
until it ends. Whatever ends an attempt, its processes are gone and its grant is released afterwards, once.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shared import names
from shared.log import get
from shared.records import Assigned, ModelRecord, ReplicaRecord
from shared.settings import WorkerSettings
from worker.agent.assignment import needs_restart
from worker.agent.backoff import Failures, Lack
from worker.agent.devices import Devices
from worker.agent.errors import AgentError, FrontFailed, NotEnoughMemory, TooFewDevices, Underestimated
from worker.agent.fetching import FETCH, fetch, with_draft
from worker.agent.front_process import FRONT, FrontProcess
from worker.agent.ledger import Grant, Ledger
from worker.agent.memory_book import MemoryBook
from worker.agent.sizing import CACHE_TOKENS, size, slots_of
from worker.agent.standby import Standby
from worker.models.errors import CannotDivide, DoesNotFit, ModelError
from worker.models.weights import prefetch
from worker.protocol import FrontConfig, FrontStatus

log = get(__name__)

DRAIN_MARGIN_S = 5.0  # beyond its grace, a front that does not end is ended
CUDA_CORES = 4


@dataclass
class Host:
    """What the keepers of a host share."""

    worker: str
    settings: WorkerSettings
    devices: Devices
    ledger: Ledger
    failures: Failures
    cores: int
    changed: Callable[[], None]  # something in the records did
    num_assigned: Callable[[], int]
    fetch_command: Sequence[str] = FETCH
    front_command: Sequence[str] = FRONT
    standby: Standby | None = None
    book: MemoryBook | None = None
    is_freeing: Callable[[], bool] = lambda: False  # a replica is draining, or loads and is not wanted any more
    freed: asyncio.Event = field(default_factory=asyncio.Event)  # a grant was released
    placing: asyncio.Lock = field(default_factory=asyncio.Lock)  # sizes and grants, one at a time
    loading: dict[str, asyncio.Lock] = field(default_factory=dict)  # by device

    def is_loading(self) -> bool:
        """Whether a replica is being loaded on any device."""
        return any(lock.locked() for lock in self.loading.values())

    def turn(self, device: str) -> asyncio.Lock:
        """Held by the replica that loads on a device."""
        return self.loading.setdefault(device, asyncio.Lock())


class Keeper:
    """Owns one model of the assignment. `run` ends when it is not wanted any more and nothing of it is left."""

    def __init__(self, host: Host, assigned: Assigned) -> None:
        self.record: ReplicaRecord | None = None
        self._host = host
        self._model_id = assigned.model.id
        self._wanted: Assigned | None = assigned
        self._revised = asyncio.Event()
        self._front: FrontProcess | None = None
        self._holds_grant = False
        self._ready_at = 0.0
        self._has_yielded = False  # asked to unload if idle, and did

    def want(self, assigned: Assigned | None) -> None:
        """The assignment as it is now; None: not any more."""
        if assigned is None or self._wanted is None or self._has_yielded or needs_restart(self._wanted, assigned):
            self._revised.set()
        self._wanted = assigned
        self._yield_if_idle()

    def _yield_if_idle(self) -> None:
        """An eviction is a request: it is followed when nothing runs, and until then it may be taken back."""
        record = self.record
        is_idle = record is None or (record.state == "ready" and not record.running and not record.waiting)
        if self._wanted is not None and self._wanted.unload_if_idle and is_idle:
            self._revised.set()

    @property
    def is_leaving(self) -> bool:
        """Whether it holds memory that it will give back."""
        return self._revised.is_set() and self._holds_grant

    async def run(self) -> None:
        """Attempt after attempt. When cancelled, ends everything at once."""
        while (assigned := self._wanted) is not None:
            self._revised.clear()
            self._ready_at = 0.0
            pause_s = 0.0
            self._has_yielded = assigned.unload_if_idle
            if self._has_yielded:
                await self._revised.wait()
                continue
            try:
                await self._until_revised(self._attempt(assigned))
            except (AgentError, ModelError) as error:
                pause_s = self._note_failure(str(error), _want_of_memory(error))
            except Exception as error:  # whatever it is, the host's other models go on
                log.exception("keeper.broken", model=self._model_id)
                pause_s = self._note_failure(f"{type(error).__name__}: {error}")
            finally:
                self.record = None
                self._host.changed()
            if pause_s and not self._revised.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._revised.wait()
        self._host.failures.forget(self._model_id)
        self._host.changed()

    def _note_failure(self, reason: str, lack: Lack | None = None) -> float:
        ran_s = time.monotonic() - self._ready_at if self._ready_at else 0.0
        pause_s = self._host.failures.note(self._model_id, reason, time.time(), ran_s=ran_s, lack=lack)
        log.error("replica.failed", model=self._model_id, reason=reason, retry_in_s=pause_s)
        return pause_s

    async def _until_revised(self, attempt: Awaitable[None]) -> None:
        """Run an attempt to its end. When the assignment changes meanwhile, drain it, or give up its loading."""
        work = asyncio.ensure_future(attempt)
        revised = asyncio.ensure_future(self._revised.wait())
        try:
            await asyncio.wait({work, revised}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and self._front is not None and self._ready_at:
                grace_s = self._host.settings.drain_grace_s
                self._front.drain(grace_s)
                await asyncio.wait({work}, timeout=grace_s + DRAIN_MARGIN_S)
            if work.done():
                await work
        finally:
            revised.cancel()
            work.cancel()
            await asyncio.wait({work})

    async def _attempt(self, assigned: Assigned) -> None:
        host = self._host
        replica = names.new_id()
        try:
            self._update(
                ReplicaRecord(
                    id=replica,
                    model=self._model_id,
                    worker=host.worker,
                    state="loading",
                    stage="download",
                    since_s=time.time(),
                )
            )
            mirrors = host.settings.sources

            def fetch_one(model: ModelRecord) -> Awaitable[Path]:
                return fetch(model, self._on_download, host.fetch_command, mirrors=mirrors)

            path = await fetch_one(assigned.model)  # 1
            assigned = msgspec.structs.replace(assigned, model=await with_draft(assigned.model, fetch_one))
            self._change(stage="wait")  # from here on the leader counts on a grant soon
            grant = await self._reserve_in_turn(replica, assigned, path)  # 2
            self._holds_grant = True
            await self._serve(replica, assigned, path, grant)  # 3, 4
        finally:
            self._holds_grant = False
            if replica in host.ledger:
                host.ledger.release(replica)
                host.freed.set()

    async def _reserve_in_turn(self, replica: str, assigned: Assigned, path: Path) -> Grant:
        """A grant; if there is no room yet but some model is on its way out, the first that there is then."""
        host = self._host
        while True:
            host.freed.clear()
            try:
                return await self._reserve(replica, assigned, path)
            except NotEnoughMemory as error:
                if not host.is_freeing():
                    raise
                self._change(stage="wait", reason=str(error))
                await asyncio.to_thread(prefetch, path)
                await host.freed.wait()
                self._change(reason="")

    async def _reserve(self, replica: str, assigned: Assigned, path: Path) -> Grant:
        """A grant on the assigned devices, else on those with most room."""
        host, model = self._host, assigned.model
        async with host.placing:
            candidates = [host.devices.get(id) for id in assigned.devices] or host.devices.all
            count = len(assigned.devices) or model.devices
            model = msgspec.structs.replace(model, devices=count)
            if len(candidates) < count:
                raise TooFewDevices(count, [candidate.id for candidate in candidates])
            free = {device.id: host.devices.free_bytes(device.id) for device in candidates}
            most = assigned.memory_bytes or sys.maxsize  # what the leader counts on
            available = {id: min(most, host.ledger.available_bytes(id, free[id])) for id in free}
            chosen = sorted(candidates, key=lambda candidate: -available[candidate.id])[:count]
            device = chosen[-1]  # each has to give as much, so the one with least decides
            excess = host.book.excess_bytes(model, device.kind) if host.book is not None else 0
            try:
                wanted = await asyncio.to_thread(
                    size,
                    path,
                    model,
                    device_kind=device.kind,
                    available_bytes=available[device.id] - excess,
                    slots=slots_of(model, host.settings.slots),
                    prefill_tokens=host.settings.prefill_tokens,
                )
            except DoesNotFit as error:
                if host.ledger.reserved_bytes(device.id) == 0 and available[device.id] < most:
                    raise
                raise self._too_much(device.id, error.needed_bytes + excess, most, free[device.id]) from error
            memory_bytes = wanted.memory_bytes + excess
            if memory_bytes > most:
                raise self._too_much(device.id, memory_bytes, most, free[device.id])
            cores = CUDA_CORES * count if device.kind == "cuda" else -(-host.cores // max(1, host.num_assigned()))
            first, *others = (one.id for one in candidates if one in chosen)
            grant = host.ledger.reserve(
                replica,
                first,
                memory_bytes,
                cores=cores,
                free_bytes=free[first],
                others={other: free[other] for other in others},
            )
        bytes = grant.memory_bytes
        self._change(devices=list(grant.devices), reserved_bytes=bytes, estimated_bytes=bytes, stage="wait")
        return grant

    def _too_much(self, device: str, needed: int, promised: int, free: int) -> AgentError:
        """It needs more than it was promised, or than there is."""
        available = self._host.ledger.available_bytes(device, free)
        if promised < needed and (needed <= available or needed > self._host.devices.get(device).total_bytes):
            return Underestimated("it needs more than it was promised", device, needed, promised)
        reserved = self._host.ledger.reserved_bytes(device)
        return NotEnoughMemory(device, needed, min(promised, available), reserved)

    async def _serve(self, replica: str, assigned: Assigned, path: Path, grant: Grant) -> None:
        """Start a front and stay with it to its end. Raises FrontFailed unless it was drained."""
        host = self._host
        model = msgspec.structs.replace(assigned.model, devices=len(grant.devices))
        options = {name: value for name, value in model.options.items() if name != CACHE_TOKENS}
        config = FrontConfig(
            replica=replica,
            worker=host.worker,
            model=msgspec.structs.replace(model, options=options),
            path=str(path),
            device=grant.device,
            followers=list(grant.others),
            cpus=[host.devices.cpus(device) for device in grant.devices],
            threads=max(1, grant.cores // len(grant.devices)),
            memory_bytes=grant.memory_bytes,
            enforce_memory=host.settings.enforce_memory,
            slots=slots_of(model, host.settings.slots),
            prefill_tokens=host.settings.prefill_tokens,
            nats=host.settings.bus.model_dump(),
            log_level=host.settings.log_level,
        )
        status: FrontStatus | None = None
        async with contextlib.AsyncExitStack() as stack:
            locks = [host.turn(device) for device in sorted(grant.devices)]
            turn = await stack.enter_async_context(_Turn(locks))
            spare = host.standby.take() if host.standby is not None and model.backend == "torch" else None
            front = await stack.enter_async_context(spare or FrontProcess(host.front_command))
            front.configure(config)
            log.info(
                "replica.starting",
                replica=replica,
                model=model.id,
                devices=",".join(grant.devices),
                pid=front.pid,
                standby=spare is not None,
            )
            self._front = front
            stack.callback(self._forget_front)
            self._change(stage="start", pids=[front.pid])
            async for status in front:
                self._on_status(replica, status)
                if status.state != "loading":
                    turn.end()
        if front.status != 0 or status is None or status.state == "failed":
            reason = status.reason if status is not None and status.state == "failed" else ""
            if status is not None and status.kind == "out_of_memory":
                self._learn_from_want(model, grant, reason)
            raise FrontFailed(reason or _exit_reason(front.status))

    def _learn_from_want(self, model: ModelRecord, grant: Grant, reason: str) -> None:
        """It ran out of its grant: what it takes is more. Raises Underestimated."""
        host, device, granted = self._host, self._host.devices.get(grant.device), grant.memory_bytes
        if host.book is not None:
            needed = host.book.lacked(model, device.kind, granted)
            raise Underestimated(f"it ran out of memory: {reason}", device.id, needed, granted)

    def _forget_front(self) -> None:
        self._front = None

    def _on_download(self, done: int, total: int) -> None:
        self._change(done_bytes=done, total_bytes=total)

    def _on_status(self, replica: str, status: FrontStatus) -> None:
        host = self._host
        if status.measured_bytes:
            self._note_memory(status.measured_bytes)
            host.ledger.measured(replica, status.measured_bytes)
        if status.state == "ready" and not self._ready_at:
            self._ready_at = time.monotonic()
            host.failures.ready(self._model_id)
        fields = {name: getattr(status, name) for name in _REPORTED}
        if self.record is not None:
            fields["reserved_bytes"] = max(self.record.reserved_bytes, status.measured_bytes)
        self._change(**fields, pids=status.pids or (self.record.pids if self.record else []))
        self._yield_if_idle()

    def _note_memory(self, measured_bytes: int) -> None:
        """The first time that a replica tells what it took."""
        record, wanted = self.record, self._wanted
        if self._host.book is None or record is None or record.measured_bytes or wanted is None or not record.devices:
            return
        kind = self._host.devices.get(record.devices[0]).kind
        self._host.book.note(wanted.model, kind, record.estimated_bytes, measured_bytes)

    def _change(self, **fields: Any) -> None:
        if self.record is not None:
            self._update(msgspec.structs.replace(self.record, **fields))

    def _update(self, record: ReplicaRecord) -> None:
        if record != self.record:
            self.record = record
            self._host.changed()


_REPORTED = [
    name
    for name in FrontStatus.__struct_fields__
    if name in ReplicaRecord.__struct_fields__ and name != "pids"
]  # fmt: skip


class _Turn:
    """Locks that may be let go before their block ends. Whoever wants several takes them in the same order."""

    def __init__(self, locks: Sequence[asyncio.Lock]) -> None:
        self._locks = locks
        self._held: list[asyncio.Lock] = []

    async def __aenter__(self) -> "_Turn":
        try:
            for lock in self._locks:
                await lock.acquire()
                self._held.append(lock)
        except BaseException:
            self.end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        while self._held:
            self._held.pop().release()


def _want_of_memory(error: Exception) -> Lack | None:
    """The figures of a refusal for want of memory, which the leader plans with."""
    if isinstance(error, NotEnoughMemory):
        return Lack("no_memory", error.device, error.needed_bytes, error.free_bytes)
    if isinstance(error, Underestimated):
        return Lack("underestimated", error.device, error.needed_bytes, error.had_bytes)
    if isinstance(error, DoesNotFit):
        return Lack("does_not_fit", "", error.needed_bytes, error.granted_bytes)
    if isinstance(error, TooFewDevices | CannotDivide):  # nor with more room: nobody is to be displaced for it
        return Lack("does_not_fit", "", 0, 0)
    return None


def _exit_reason(status: int | None) -> str:
    if status is not None and status < 0:
        return f"the front was ended by signal {-status}"
    return f"the front exited with status {status}"
