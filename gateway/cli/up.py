"""`plexus up`: a whole fleet on this machine, as child processes of one that watches over them.

The order: broker, catalogue, gateway and workers together, models. It ends in the opposite one: workers finish what
they have for a few seconds, then the gateway, then the broker. A child that dies later is started again.
"""

import asyncio
import contextlib
import importlib.util
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.cli import intents, processes
from gateway.cli.child import Child
from gateway.cli.errors import CliError, ModelFailed
from gateway.cli.home import DataDir, FleetFile
from gateway.cli.operate import LOOK_S, Reasons
from gateway.cli.progress import Row, model_progress
from gateway.cli.screen import Screen
from shared import topology
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import WorkerRecord

STOP_S = 10.0  # what a process gets to end in good order, before it is killed
START_S = 60.0  # for the gateway and the agents to show themselves; models may take as long as they like
STRAGGLE_S = 10.0  # how long a model that is ready on one worker waits for the others
BROKER_LOOK_S = 0.25


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What `plexus up` was asked for. Port 0 means a free one."""

    models: tuple[str, ...] = ()
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = 31313
    metrics_port: int = 31314
    verbose: bool = False


async def up(options: UpOptions, home: DataDir, screen: Screen, on_ready: Callable[[FleetFile], None]) -> None:
    """Run a fleet until a signal ends it. Raises CliError when it cannot start or go on."""
    check_worker_installed()
    with home:
        await EmbeddedFleet(options, home, screen, on_ready).run()


def check_worker_installed() -> None:
    """Raises CliError in an environment that can run gateways only."""
    if importlib.util.find_spec("torch") is None:
        raise CliError(
            "there is no torch here, so no worker can run. In a checkout: ./plexus setup --torch cpu (or cuda); "
            "elsewhere: install plexus-fleet[worker]."
        )


class EmbeddedFleet:
    """The processes of one `plexus up`. `run` is its life."""

    def __init__(
        self, options: UpOptions, home: DataDir, screen: Screen, on_ready: Callable[[FleetFile], None]
    ) -> None:
        """`home` is locked by the caller. `on_ready` is told once, when every model can be used or was called off."""
        self._options, self._home, self._screen, self._on_ready = options, home, screen, on_ready
        self._models = [intents.named_model(text) for text in options.models] or [intents.demo_model()]
        if options.port and options.port == options.metrics_port:
            raise CliError(f"API and metrics cannot share port {options.port}. Choose another with --metrics-port.")
        self._api = processes.free_address(options.host, options.port, "--port")
        self._metrics = processes.free_address(options.host, options.metrics_port, "--metrics-port")
        self._broker = EmbeddedBroker(home.path / "nats")
        self._workers: list[Child] = []
        self._children: list[Child] = []  # the workers, then the gateway: the order in which they stop
        self._keepers: set[asyncio.Task[None]] = set()  # one for each process; one that ends has given up
        self._stopping = asyncio.Event()
        self._num_signals = 0
        self._written: FleetFile | None = None  # fleet.json as it is

    async def run(self) -> None:
        """Start everything, tell `on_ready`, and stay until SIGINT, SIGTERM or SIGHUP; a second one kills.

        Raises CliError when the fleet cannot start or go on. Whichever way it ends, no process is left.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, self._on_signal)
        life = asyncio.create_task(self._live())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            life.cancel()
            await asyncio.wait({life})
            await self._stop()
        if not life.cancelled() and (error := life.exception()):
            raise error

    # --- life ------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        await self._broker.start()
        async with await Bus.connect(self._broker.bus_settings("operator"), kind="cli", ident="up") as bus:
            await topology.ensure(bus)
            await intents.declare(bus, self._models, self._options.workers)
            self._start_children()
            async with Fleet(bus) as fleet:
                await self._unless_one_gives_up(self._wait_ready(bus, fleet))
        for child in self._children:
            child.may_restart = True
        self._on_ready(self._write())
        await self._unless_one_gives_up(self._stay())

    def _start_children(self) -> None:
        options, broker = self._options, self._broker
        say, verbose = self._screen.say, options.verbose
        bus = broker.bus_settings("worker")
        self._workers = [
            processes.worker_child(number, options.workers, self._home, bus, verbose=verbose, on_change=say)
            for number in range(1, options.workers + 1)
        ]
        bus = broker.bus_settings("gateway")
        gateway = processes.gateway_child(self._home, bus, self._api, self._metrics, verbose=verbose, on_change=say)
        self._children = [*self._workers, gateway]
        self._keepers = {asyncio.create_task(child.run()) for child in self._children}
        self._keepers.add(asyncio.create_task(self._keep_broker()))

    async def _keep_broker(self) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(BROKER_LOOK_S)
            if not self._broker.pid and not self._stopping.is_set():
                self._screen.say(f"nats died; starting it again (its log is {self._broker.log_path})")
                await self._broker.start()

    async def _stay(self) -> None:
        """Keep fleet.json true: pids change when processes are started again."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._write()

    def _write(self) -> FleetFile:
        """Bring fleet.json up to date, by which other commands find the fleet."""
        now = self._fleet_file()
        if now != self._written:
            self._home.write(now)
            self._written = now
        return now

    async def _unless_one_gives_up(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()  # raises what made it give up
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    # --- becoming ready --------------------------------------------------------------------------------------

    async def _wait_ready(self, bus: Bus, fleet: Fleet) -> None:
        reasons = Reasons(bus)
        began = time.monotonic()
        first_ready: dict[str, float] = {}  # model → when it was first seen ready somewhere
        while True:
            rows = [Row(name="nats", state="ready", text=self._broker.url)]
            ours = self._our_workers(fleet)
            rows.append(await self._gateway_row())
            if rows[-1].state == "ready":  # operators may look at a long load, and call it off
                self._write()
            rows += [_process_row(worker.name, worker.name in ours) for worker in self._workers]
            are_up = all(row.state == "ready" for row in rows)
            if not are_up and time.monotonic() - began > START_S:
                late = ", ".join(row.name for row in rows if row.state != "ready")
                raise CliError(f"{late} did not come up within {START_S:g} s; the logs are in {self._home.logs}")
            num_done = 0
            for model in self._models:
                progress = model_progress(model.id, ours, fleet.replicas)
                if are_up and progress.row.state == "waiting":
                    progress = model_progress(model.id, ours, fleet.replicas, reason=await reasons.of(model.id))
                intent = fleet.intents.get(model.id)
                if intent is not None and intent.want == "unloaded":  # called off
                    num_done += 1
                elif progress.failure:
                    self._screen.show([*rows, progress.row])
                    raise ModelFailed(model.id, progress.failure.reason)
                elif progress.num_ready:
                    waited_s = time.monotonic() - first_ready.setdefault(model.id, time.monotonic())
                    is_last = not progress.num_loading and waited_s > STRAGGLE_S
                    num_done += progress.num_ready >= len(self._workers) or is_last
                rows.append(progress.row)
            self._screen.show(rows)
            if are_up and num_done == len(self._models):
                return
            await asyncio.sleep(LOOK_S)

    def _our_workers(self, fleet: Fleet) -> dict[str, WorkerRecord]:
        """The records of the running agents; those of an earlier fleet may still be there."""
        pids = {worker.name: worker.pid for worker in self._workers}
        return {name: worker for name, worker in fleet.workers.items() if worker.pid == pids.get(name)}

    async def _gateway_row(self) -> Row:
        near = self._api.near
        try:
            _, writer = await asyncio.open_connection(near.host, near.port)
        except OSError:
            return _process_row("gateway", False)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return Row(name="gateway", state="ready", text=f"http://{near}")

    def _fleet_file(self) -> FleetFile:
        operator = self._broker.bus_settings("operator")
        return FleetFile(
            api=f"http://{self._api.near}/v1",
            metrics=f"http://{self._metrics.near}/metrics",
            nats=self._broker.url,
            user=operator.user,
            password=operator.password,
            models=[model.id for model in self._models],
            pids={"nats": self._broker.pid} | {child.name: child.pid for child in self._children},
        )

    # --- the end ---------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            self._screen.say("stopping (a second Ctrl-C kills)")
            self._stopping.set()
        else:
            self._kill()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()
        self._broker.kill()

    async def _stop(self) -> None:
        self._stopping.set()
        try:
            await asyncio.gather(*(worker.stop(processes.DRAIN_S + STOP_S) for worker in self._workers))
            for child in self._children:
                await child.stop(STOP_S)
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)
            await self._broker.stop()
        finally:
            self._kill()


def _process_row(name: str, is_ready: bool) -> Row:
    return Row(name=name, state="ready" if is_ready else "busy", text="" if is_ready else "starting")
