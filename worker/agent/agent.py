"""The agent: from its assignment to running replicas, from those to the records of this host."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from shared import messages, names
from shared.bus import Bus, Msg
from shared.kv import Bucket
from shared.log import get
from shared.messages import Pong
from shared.mirror import Mirror
from shared.process import is_running
from shared.records import HEARTBEAT_S, Assigned, AssignmentRecord, Device, ReplicaRecord, WorkerRecord
from shared.settings import WorkerSettings
from shared.version import own_version
from worker.agent.assignment import Assignments
from worker.agent.backoff import Failures
from worker.agent.counting import COUNTER, Counting
from worker.agent.devices import Devices, num_cores
from worker.agent.errors import NameTaken
from worker.agent.estimates import Estimates
from worker.agent.fetching import FETCH
from worker.agent.front_process import FRONT
from worker.agent.heart import Heart
from worker.agent.keeper import Host, Keeper
from worker.agent.ledger import Ledger
from worker.agent.memory_book import MemoryBook
from worker.agent.standby import Standby

log = get(__name__)

TWIN_S = 1.5 * HEARTBEAT_S  # a living namesake writes its record within this time


class Agent:
    """One host. `run` serves until `drain` or `stop`."""

    def __init__(
        self,
        settings: WorkerSettings,
        name: str,
        *,
        devices: Devices | None = None,
        fetch_command: Sequence[str] = FETCH,
        front_command: Sequence[str] = FRONT,
        counter_command: Sequence[str] = COUNTER,
    ) -> None:
        self.name = name
        self.incarnation = names.new_id()
        self._settings = settings
        self._counter_command = counter_command
        self._devices = devices or Devices(settings)
        cores = num_cores(settings)
        self._assignments = Assignments()
        self._keepers: dict[str, Keeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._ended = asyncio.Event()
        self._heart: Heart | None = None
        self._host = Host(
            worker=name,
            settings=settings,
            devices=self._devices,
            ledger=Ledger({device.id: device.total_bytes for device in self._devices.all}, cores),
            failures=Failures(),
            cores=cores,
            changed=self._on_change,
            num_assigned=lambda: len(self._assignments.models),
            is_freeing=lambda: any(keeper.is_leaving for keeper in self._keepers.values()),
            fetch_command=fetch_command,
            front_command=front_command,
        )
        self._host.book = MemoryBook(settings.state_dir)
        if settings.standby:
            self._host.standby = Standby(front_command, self._host.is_loading)

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve. `on_ready` is called when the worker's record is in the bucket. Raises NameTaken."""
        serving = asyncio.create_task(self._serve(on_ready))
        ended = asyncio.create_task(self._ended.wait())
        # Before there is a bus: what a first model needs is imported while the fleet finds together.
        spare = [asyncio.create_task(self._host.standby.run())] if self._host.standby is not None else []
        try:
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
        finally:
            for task in (ended, serving, *spare):
                task.cancel()
            await asyncio.wait({serving, *spare})

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        """Until cancelled. Waits as long as there is no server, and as long as there are no buckets."""
        async with await Bus.connect(self._settings.bus, kind="worker", ident=self.name) as bus:
            bucket = Bucket(bus, names.FLEET)
            mirror = Mirror(bus, names.PLAN, self._decode)
            mirror.on_change(self._on_assignment)
            await bus.subscribe(names.worker_rpc(self.name), self._on_rpc)
            estimates = Estimates(bus, self.name, self._settings, self._host.fetch_command)
            counting = Counting(bus, self.name, self._counter_command, self._settings.sources)
            async with mirror, counting, estimates:
                await self._refuse_twin(bucket)
                heart = self._heart = Heart(bucket, self._worker_record, self._replica_records)
                beating = asyncio.create_task(heart.run())
                try:
                    self._reconcile()
                    await heart.beaten()
                    log.info("worker.ready", worker=self.name, incarnation=self.incarnation)
                    on_ready()
                    await beating
                finally:
                    await self._end_all()
                    beating.cancel()
                    await asyncio.wait({beating})
                    await heart.end()

    def drain(self) -> None:
        """Let every replica finish what runs, then end. The second time: end at once."""
        if self._draining:
            self.stop()
            return
        log.info("worker.draining", worker=self.name)
        self._draining = True
        for keeper in self._keepers.values():
            keeper.want(None)
        self._on_change()
        if not self._tasks:
            self.stop()

    def stop(self) -> None:
        """End at once."""
        self._ended.set()

    # --- assignment ------------------------------------------------------------------------------------------

    def _decode(self, key: str, value: bytes) -> AssignmentRecord | None:
        return msgspec.json.decode(value, type=AssignmentRecord) if key == names.want_key(self.name) else None

    def _on_assignment(self, key: str, record: AssignmentRecord | None) -> None:
        if record is None:  # only a purge does that; the leader assigns nothing by an empty record
            return
        if self._assignments.accept(record):
            log.info("worker.assigned", epoch=record.epoch, generation=record.generation, models=len(record.models))
            if self._heart is not None:
                self._reconcile()
        else:
            log.warning("assignment.refused", epoch=record.epoch, generation=record.generation)

    def _reconcile(self) -> None:
        """Tell every keeper what is wanted of its model, and make those that are missing."""
        if self._draining:
            return
        wanted: dict[str, Assigned] = self._assignments.models
        for model, keeper in self._keepers.items():
            keeper.want(wanted.get(model))
        for model, assigned in wanted.items():
            if model not in self._keepers:
                self._keep(model, assigned)
        self._on_change()

    def _keep(self, model: str, assigned: Assigned) -> None:
        keeper = self._keepers[model] = Keeper(self._host, assigned)
        task = self._tasks[model] = asyncio.create_task(keeper.run(), name=f"keep {model}")
        task.add_done_callback(lambda _: self._on_keeper_end(model, task))

    def _on_keeper_end(self, model: str, task: "asyncio.Task[None]") -> None:
        del self._keepers[model], self._tasks[model]
        if self._draining:
            if not self._tasks:
                self.stop()
        elif not self._ended.is_set() and model in self._assignments.models:
            self._reconcile()  # wanted again since it ended
        self._on_change()

    async def _end_all(self) -> None:
        self._ended.set()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- records ---------------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        if self._heart is not None:
            self._heart.change()

    def _worker_record(self) -> WorkerRecord:
        ledger = self._host.ledger
        return WorkerRecord(
            name=self.name,
            incarnation=self.incarnation,
            host=socket.gethostname(),
            state="draining" if self._draining else "ready",
            pid=os.getpid(),
            devices=[
                Device(
                    id=device.id,
                    kind=device.kind,
                    name=device.name,
                    total_bytes=device.total_bytes,
                    free_bytes=self._devices.free_bytes(device.id),
                    reserved_bytes=ledger.reserved_bytes(device.id),
                )
                for device in self._devices.all
            ],
            cores=self._host.cores,
            reserved_cores=ledger.reserved_cores,
            replicas=[record.id for record in self._replica_records()],
            failures=self._host.failures.all(),
            epoch=self._assignments.epoch,
            generation=self._assignments.generation,
            version=own_version(),
            mirrors=sorted(self._settings.sources),
        )

    def _replica_records(self) -> list[ReplicaRecord]:
        return [keeper.record for keeper in self._keepers.values() if keeper.record is not None]

    async def _refuse_twin(self, bucket: Bucket) -> None:
        """Two agents of one name would overwrite each other. What an earlier incarnation left stands still."""
        key = names.worker_key(self.name)
        first = await bucket.get(key)
        if first is None:
            return
        left = msgspec.json.decode(first[0], type=WorkerRecord)
        if left.host == socket.gethostname() and not is_running(left.pid):
            return
        until = time.monotonic() + TWIN_S
        while time.monotonic() < until:
            await asyncio.sleep(HEARTBEAT_S / 4)
            now = await bucket.get(key)
            if now is None:
                return
            if now[1] != first[1]:
                raise NameTaken(self.name, left.host, left.pid)

    async def _on_rpc(self, message: Msg) -> None:
        if message.reply:
            running = sum(record.running for record in self._replica_records())
            await message.respond(messages.encode(Pong(phase="agent", running=running)))
