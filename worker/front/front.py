"""One replica: joins the queue, the owners of its jobs, and its rank.

What runs here side by side: the rank's keeper (starts it, reads it, starts it again), a ticker (everything that time
brings about), callbacks of the bus, and one short task for each job that comes in. They share the job table, whose
methods never wait; what it decides leaves through `_apply`, in order.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shared import collector, names
from shared.bus import Bus, Msg
from shared.errors import BusError
from shared.log import get
from shared.messages import Item, Pong
from shared.service import Service
from worker.front.effects import Effects
from worker.front.errors import LoadFailed, Unservable
from worker.front.intake import Intake
from worker.front.jobs import JobTable
from worker.front.owner_watch import OwnerWatch
from worker.front.publisher import Publisher
from worker.front.pulls import Pulls
from worker.front.rank_keeper import RankKeeper
from worker.front.rank_link import RANK, RankLink
from worker.front.reporter import Reporter
from worker.front.request import Limits, defaults
from worker.front.rpc import Rpc
from worker.protocol import Abort, FrontConfig, FrontStatus, Loading, RankConfig, Ranks, RankToFront, Ready, Step
from worker.text.model_text import CheckpointError, ModelText

log = get(__name__)

TICK_S = 0.25
HOLD_S = 0.002
OFFER_S = 0.002
MAX_WAITING = 4  # jobs that the rank has not begun
EXIT_FAILED = 3
SERVICE = "plexus-replica"


@dataclass(frozen=True)
class ReadyRank:
    """What the rank can do, once it is loaded."""

    limits: Limits
    fingerprint: str


@dataclass
class _Parts:
    """What exists once the bus is connected and the text side is loaded."""

    bus: Bus
    text: ModelText
    defaults: dict[str, Any]
    table: JobTable
    publisher: Publisher
    intake: Intake
    owners: OwnerWatch
    pulls: Pulls


class Front:
    """One replica. `run` returns the exit code: 0 after a drain or `stop`, 3 when the replica cannot work."""

    def __init__(
        self,
        config: FrontConfig,
        *,
        connect: Callable[[], Awaitable[Bus]],
        load_text: Callable[[], ModelText],
        report: Callable[[FrontStatus], None],
        rank_command: Sequence[str] = RANK,
        spare: RankLink | None = None,
        pid: int = 0,
    ) -> None:
        self.reporter = Reporter(report)
        self._config = config
        self._connect = connect
        self._load_text = load_text
        self._pid = pid
        self._keeper = RankKeeper(
            config.replica,
            _rank_config(config),
            rank_command,
            on_start=self._on_rank_start,
            on_message=self._on_rank,
            on_end=self._on_rank_end,
            spare=spare,
        )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._image_executor = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._exit: asyncio.Future[int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts: _Parts | None = None
        self._prepared = asyncio.Event()
        self._held: dict[str, list[Item]] = {}  # reply subject → items that wait for the first token
        self._holding: asyncio.TimerHandle | None = None
        self._offering: asyncio.TimerHandle | None = None
        self._rank: ReadyRank | None = None
        self._figures = Step()
        self._blocks = 0
        self._draining = False
        self._broken = ""  # why this front ends out of order
        self._settled = asyncio.Event()  # something ended

    # --- life ------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until drained, stopped or broken."""
        self._exit = asyncio.get_running_loop().create_future()
        self._spawn(self.reporter.run())
        self._spawn(self._keeper.run())
        self._spawn(self._prepare())
        self._spawn(self._tick())
        try:
            return await self._exit
        except LoadFailed as error:
            log.error("replica.failed", replica=self._config.replica, model=self._config.model.id, reason=str(error))
            self.reporter.update(state="failed", reason=str(error), kind=error.kind)
            return EXIT_FAILED
        except Exception as error:
            self._broken = f"The front broke: {type(error).__name__}: {error}"
            log.exception("front.broken", replica=self._config.replica, model=self._config.model.id)
            self.reporter.update(state="failed", reason=f"the front broke: {type(error).__name__}: {error}")
            return EXIT_FAILED
        finally:
            await self._close()

    def stop(self) -> None:
        """End at once; what runs is lost."""
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(0)

    def drain(self, grace_s: float) -> None:
        """Take no more jobs; finish or hand back what runs within `grace_s`, then end."""
        if not self._draining:
            self._draining = True
            self._spawn(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        log.info("replica.draining", replica=self._config.replica, grace_s=grace_s)
        self.reporter.update(state="draining")
        self._keeper.retire()
        parts = self._parts
        if parts is not None:
            await parts.pulls.pause()
            until = time.monotonic() + grace_s
            while (parts.table.num_running or parts.table.num_unconfirmed) and time.monotonic() < until:
                self._settled.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(until - time.monotonic()):
                        await self._settled.wait()
        self.stop()

    async def _close(self) -> None:
        """Hand back what still runs, and end everything. The rank ends with its keeper."""
        self._draining = True
        if self._parts is not None:
            await self._parts.pulls.pause()
            fx = Effects()
            self._parts.table.close_all(time.monotonic(), fx, broken=self._broken)
            self._apply(fx)
            self._release()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reporter.flush()
        if self._parts is not None:
            await self._parts.bus.close()
        for executor in (self._executor, self._image_executor):
            executor.shutdown(wait=False, cancel_futures=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._exit is not None and not self._exit.done():
            self._exit.set_exception(error)

    # --- the bus and the text side ---------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Load the text side, connect, listen. Meanwhile the rank loads."""
        config = self._config
        try:
            text = await asyncio.get_running_loop().run_in_executor(self._executor, self._load_text)
            resolved = defaults(config.model.sampling, text.generation)
        except (CheckpointError, Unservable) as error:
            raise LoadFailed(str(error)) from error
        bus = await self._connect()
        table = JobTable(text, max_reply_bytes=bus.max_payload // 2)
        publisher = Publisher(bus, config.replica, config.worker, lambda: bus.max_payload - 4096)
        intake = Intake(
            replica=config.replica,
            model=config.model.id,
            task=config.model.task,
            bus=bus,
            table=table,
            text=text,
            apply=self._apply,
            ready=lambda: self._rank,
            executor=self._executor,
            image_executor=self._image_executor,
        )
        pulls = Pulls(bus, config.model.id, self._on_job, lambda: self._spawn(self._offer()))
        owners = OwnerWatch(bus, config.replica, table, self._apply)
        await owners.start()
        self._parts = _Parts(bus, text, resolved, table, publisher, intake, owners, pulls)
        subject, ident = names.replica_rpc(config.replica), config.replica
        await bus.subscribe(subject, Rpc(table, self._pong, self._apply).on_message, queue=ident)
        metadata = {"model": config.model.id, "worker": config.worker}
        service = Service(
            bus,
            SERVICE,
            ident,
            description="One loaded copy of a model",
            subject=subject,
            queue=ident,
            metadata=metadata,
            stats=self._stats,
        )
        await service.start()
        bus.on_reconnect(self._on_reconnect)
        self._prepared.set()

    async def _on_reconnect(self) -> None:
        """The server may have forgotten our pulls, and counts the time since it last heard of our jobs."""
        parts = self._parts
        if parts is None:
            return
        fx = Effects()
        parts.table.progress_all(time.monotonic(), fx)
        self._apply(fx)
        await parts.pulls.pause()
        await self._offer()

    # --- jobs in ---------------------------------------------------------------------------------------------

    async def _offer(self) -> None:
        """Keep the pulls standing that there is room for."""
        parts = self._parts
        if parts is not None and self._rank is not None and not self._draining:
            used = parts.table.num_choices
            await parts.pulls.offer(used=used, slots=self._config.slots, has_room=self._has_cache_room())

    def _has_cache_room(self) -> bool:
        """Whether the rank would soon begin another job."""
        waiting = self._figures.waiting
        return waiting == 0 or (waiting < MAX_WAITING and self._figures.blocks_free * 8 >= self._blocks)

    def _on_job(self, message: Msg) -> None:
        parts = self._parts
        assert parts is not None
        fx = Effects()
        begun = parts.intake.begin(message.data, message.reply, fx)
        self._apply(fx)
        if begun is not None:
            run, given = begun
            log.debug("job.taken", job=run.job.id, attempt=run.job.attempt, delivery=given.count)
            if parts.intake.is_short(given.count, len(message.data), run.job):
                parts.intake.finish_at_once(run)  # the job is on its way before anything else is done
            else:
                self._spawn(parts.intake.finish(run, given.count, len(message.data)))
            if not given.pending and parts.table.num_running <= 1:
                self._offer_soon()
                return
        self._spawn(self._offer())

    def _offer_soon(self) -> None:
        """Offer after a moment: at once, the work for it would delay the one token that somebody waits for.

        Only for a replica that was idle. With other jobs running, a moment for each would keep the batch small.
        """
        if self._offering is None:
            self._offering = asyncio.get_running_loop().call_later(OFFER_S, self._offer_now)

    def _offer_now(self) -> None:
        if self._offering is not None:
            self._offering.cancel()
            self._offering = None
        self._report_load()
        self._spawn(self._offer())

    # --- effects out -----------------------------------------------------------------------------------------

    def _apply(self, fx: Effects) -> None:
        """Carry out what the table decided. Nothing in here waits, so that items of a job stay in order."""
        parts = self._parts
        if parts is None:
            return
        if fx.aborts:
            self._keeper.send(Abort(fx.aborts))
        for submit in fx.submits:
            self._keeper.send(submit)
        for reply, items in fx.batches.items():
            if fx.can_wait:
                self._hold(reply, items)
            else:
                parts.publisher.publish(reply, self._held.pop(reply, []) + items)
        for ack, verb in fx.answers:
            with contextlib.suppress(BusError):  # the job comes again, and is then answered from the table
                parts.bus.send(ack, verb)
        if fx.answers:
            self._settled.set()

    def _hold(self, reply: str, items: list[Item]) -> None:
        """Publish with what comes next, or after a moment: a message of its own would delay the first token."""
        self._held.setdefault(reply, []).extend(items)
        if self._holding is None:
            self._holding = asyncio.get_running_loop().call_later(HOLD_S, self._release)

    def _release(self) -> None:
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        held, self._held = self._held, {}
        for reply, items in held.items():
            if self._parts is not None:
                self._parts.publisher.publish(reply, items)

    # --- the rank --------------------------------------------------------------------------------------------

    def _on_rank_start(self, pid: int, reason: str) -> None:
        self.reporter.update(
            state="draining" if self._draining else "loading",
            reason=reason,
            stage="start",
            running=0,
            waiting=0,
            done_bytes=0,
            total_bytes=0,
            pids=[self._pid, pid] if pid else [self._pid],
        )

    def _on_rank(self, message: RankToFront) -> None:
        match message:
            case Step():
                self._on_step(message)
            case Loading():
                self.reporter.update(
                    stage=message.stage, done_bytes=message.done_bytes, total_bytes=message.total_bytes
                )
            case Ranks():
                self.reporter.update(pids=[*self.reporter.status.pids, *message.pids])
            case Ready():
                self._spawn(self._on_ready(message))

    async def _on_ready(self, ready: Ready) -> None:
        await self._prepared.wait()
        parts = self._parts
        assert parts is not None
        limits = Limits(ready.context_limit, ready.vocab_size, tuple(parts.text.eos_ids), parts.defaults)
        self._rank = ReadyRank(limits, ready.fingerprint)
        self._blocks = ready.blocks
        self._figures = Step(blocks_free=ready.blocks)
        self.reporter.update(
            state="draining" if self._draining else "ready",
            stage="",
            reason="",
            slots=self._config.slots,
            blocks_total=ready.blocks,
            blocks_free=ready.blocks,
            block_tokens=ready.block_tokens,
            context_limit=ready.context_limit,
            fingerprint=ready.fingerprint,
            capabilities=parts.text.capabilities if self._config.model.task == "generate" else {},
            load_s=ready.load_s,
            stages_s=ready.stages_s,
            measured_bytes=ready.measured_bytes,
        )
        log.info("replica.ready", replica=self._config.replica, model=self._config.model.id, load_s=ready.load_s)
        await self._offer()

    def _on_step(self, step: Step) -> None:
        parts = self._parts
        if parts is None:
            return
        fx = Effects()
        finished = parts.table.num_finished
        try:
            parts.table.on_step(step, time.monotonic(), fx)
        finally:
            self._apply(fx)
        before, self._figures = self._figures, step
        if finished != parts.table.num_finished:
            self._keeper.finished_job()
        if finished != parts.table.num_finished or step.waiting < before.waiting:
            self._spawn(self._offer())

    async def _on_rank_end(self, reason: str) -> None:
        self._rank = None
        parts = self._parts
        if parts is None:
            return
        fx = Effects()
        parts.table.rank_died(reason, time.monotonic(), fx)
        self._apply(fx)
        await parts.pulls.pause()

    # --- time ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            parts = self._parts
            self._keeper.check(has_work=parts is not None and parts.table.has_work)
            if parts is None:
                continue
            now = time.monotonic()
            fx = Effects()
            parts.table.tick(now, fx)
            self._apply(fx)
            for reply, lately in parts.owners.gone.due(now):
                self._spawn(parts.owners.check(reply, lately))
            self._report_load()
            await self._offer()
            collector.collect()

    def _pong(self) -> Pong:
        table = None if self._parts is None else self._parts.table
        if table is None:
            return self._keeper.pong(running=0, has_work=False)
        return self._keeper.pong(running=table.num_running, has_work=table.has_work)

    def _stats(self) -> dict[str, Any]:
        """For whoever asks for the service's statistics."""
        status = self.reporter.status
        finished = 0 if self._parts is None else self._parts.table.num_finished
        return {"state": status.state, "running": status.running, "waiting": status.waiting, "finished": finished}

    def _report_load(self) -> None:
        if self._rank is None or self._parts is None:
            return
        figures, table = self._figures, self._parts.table
        running = table.num_running
        self.reporter.update(
            running=running,
            waiting=figures.waiting,
            blocks_free=figures.blocks_free,
            last_used_s=time.time() if running else self.reporter.status.last_used_s,
        )


def _rank_config(config: FrontConfig) -> RankConfig:
    return RankConfig(
        path=config.path,
        task=config.model.task,
        backend=config.model.backend,
        device=config.device,
        followers=config.followers,
        cpus=config.cpus,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        threads=config.threads,
        memory_bytes=config.memory_bytes,
        enforce_memory=config.enforce_memory,
        context_limit=config.model.context_limit,
        slots=config.slots,
        prefill_tokens=config.prefill_tokens,
        options=config.model.options,
        log_level=config.log_level,
    )
