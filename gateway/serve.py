"""A gateway from start to end: connection, fleet, dispatch, placement, and two HTTP servers in one process."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import app, metrics
from gateway.afterwards import Afterwards
from gateway.catalogue import Catalogue
from gateway.counting import Counter
from gateway.demand import Demand
from gateway.dispatch import Dispatcher
from gateway.exchange import Services
from gateway.flight import Flight
from gateway.health import Health
from gateway.metrics import Metrics
from gateway.models_loader import ModelsLoader
from gateway.placement.leader import Leader
from gateway.presence import Presence
from gateway.responses.background import Background
from gateway.responses.store import Store
from gateway.service import service
from gateway.supervise import Supervisor
from gateway.waiting import Waits
from gateway.whereabouts import Whereabouts
from shared import log as logs
from shared import names, topology
from shared.bus import Bus
from shared.errors import SettingsError
from shared.fleet import Fleet
from shared.records import GatewayRecord
from shared.settings import GatewaySettings
from shared.version import own_version

GRACE_S = 3  # for connections to end, once their streams have got their last event
KEEP_ALIVE_S = 75
TICK_S = 1.0  # the age of the date in the answers' headers
BACKLOG = 2048

log = logs.get(__name__)


async def serve(settings: GatewaySettings, *, on_ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until this task is cancelled; a second signal ends it at once.

    `on_ready` gets url, port, metrics_url, metrics_port and gateway, with the ports that were really taken.
    Raises SettingsError when an address cannot be listened on or the catalogue's file is bad.
    """
    gateway_id = names.new_id()
    with listening(settings.listen) as public, listening(settings.metrics_listen) as private:
        _check_apart(public, private)
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(
                await Bus.connect(settings.bus, kind="gateway", ident=gateway_id, wait=True)
            )
            await topology.ensure(bus)
            fleet = await stack.enter_async_context(Fleet(bus))
            if settings.models:
                loader = ModelsLoader(bus, fleet, Path(settings.models))
                stack.push_async_callback(loader.close)
                await loader.start()
            catalogue = Catalogue(fleet)
            counts = Metrics(lambda: list(fleet.replicas.values()))
            dispatcher = Dispatcher(bus, settings, gateway_id, counts)
            stack.push_async_callback(dispatcher.close)
            await dispatcher.start()
            demand = Demand(bus, dispatcher, catalogue)
            waits = Waits(catalogue, demand.word)
            supervisor = Supervisor(bus, dispatcher, settings, waits.of)
            stack.push_async_callback(supervisor.close)
            await supervisor.start()
            whereabouts = Whereabouts(bus, dispatcher, gateway_id)

            def on_end(flight: Flight) -> None:
                whereabouts.ended(flight)
                waits.ended(flight)

            dispatcher.on_end = on_end
            dispatcher.turns.num_slots = catalogue.num_slots
            stack.push_async_callback(whereabouts.close)
            await whereabouts.start()
            placer = Leader(bus, fleet, gateway_id, placement=settings.placement, eviction=settings.eviction)
            await stack.enter_async_context(placer)
            url = url_of(public)  # asked now: the server closes the socket before the record ends
            presence = Presence(bus, lambda: _record(gateway_id, url, dispatcher))
            stack.push_async_callback(presence.close)
            await presence.start()
            card = service(bus, gateway_id, socket.gethostname(), url, dispatcher)
            stack.push_async_callback(card.close)
            await card.start()
            stack.push_async_callback(demand.close)
            demand.start()
            background = Background(bus, fleet, gateway_id, Store(bus), settings.keepalive_s)
            stack.push_async_callback(background.close)
            await background.start()
            services = Services(
                dispatcher=dispatcher,
                catalogue=catalogue,
                metrics=counts,
                demand=demand,
                max_body_bytes=settings.max_body_bytes,
                accept_wait_s=settings.accept_wait_s,
                counter=Counter(bus, fleet),
                background=background,
                waits=waits,
            )
            http = app.build(services, Health(gateway_id, bus, fleet, catalogue), own_version())
            servers = [(_server(http), public), (_server(_metrics_app(counts, dispatcher.afterwards)), private)]
            ready = {
                "url": url,
                "port": public.getsockname()[1],
                "metrics_url": url_of(private) + "/metrics",
                "metrics_port": private.getsockname()[1],
                "gateway": gateway_id,
            }
            await _run(servers, dispatcher, lambda: _announce(ready, on_ready))
    log.info("gateway.stopped", gateway=gateway_id)


@contextlib.contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A bound socket for ``host:port``, ``[v6]:port`` or ``:port``. Port 0 takes a free one. Raises SettingsError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"{address!r} is no address to listen on: expected host:port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(port)))
        except OSError as error:
            raise SettingsError(f"cannot listen on {address}: {error.strerror or error}") from error
        yield listener


def _check_apart(public: socket.socket, private: socket.socket) -> None:
    # Sockets that do not listen yet may be bound alike.
    hosts, ports = zip(public.getsockname()[:2], private.getsockname()[:2], strict=True)
    is_any = "::" in hosts or ("0.0.0.0" in hosts and not any(":" in host for host in hosts))
    if len(set(ports)) == 1 and (is_any or len(set(hosts)) == 1):
        raise SettingsError(f"listen and metrics_listen cannot share port {ports[0]}: choose another for one of them")


def url_of(listener: socket.socket) -> str:
    """The URL at which a listening socket is reached from this host."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """A server that leaves signals to its owner, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Take no more connections, and end when those that are open have ended."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """As the original, which wakes the process ten times a second to look whether it should exit."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stopped.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(application: ASGIApp) -> _Server:
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    return _Server(config)


async def _run(
    servers: list[tuple[_Server, socket.socket]], dispatcher: Dispatcher, announce: Callable[[], None]
) -> None:
    """The servers until a signal; then the streams are ended and the connections closed."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            for server, _ in servers:
                server.force_exit = True
        stopping.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    tasks = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
    waiting = asyncio.create_task(stopping.wait())
    started = asyncio.create_task(_all_listen(servers))
    try:
        await asyncio.wait([started, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            announce()
            await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        started.cancel()
        waiting.cancel()
        for server, _ in servers:
            server.stop()
        await dispatcher.stop()
        await asyncio.gather(*tasks)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)


async def _all_listen(servers: list[tuple[_Server, socket.socket]]) -> None:
    for server, _ in servers:
        await server.listening.wait()


def _announce(ready: dict[str, Any], on_ready: Callable[[dict[str, Any]], None] | None) -> None:
    log.info("gateway.ready", **ready)
    if on_ready is not None:
        on_ready(ready)


def _record(gateway_id: str, url: str, dispatcher: Dispatcher) -> GatewayRecord:
    return GatewayRecord(
        id=gateway_id,
        host=socket.gethostname(),
        url=url,
        in_flight=len(dispatcher.streams.flights),
        version=own_version(),
        at_s=time.time(),
    )


def _metrics_app(counts: Metrics, afterwards: Afterwards) -> ASGIApp:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        afterwards.settle()  # whoever has an answer finds it counted
        is_found = scope["path"] in ("/metrics", "/")
        data = counts.render() if is_found else b"metrics are at /metrics\n"
        headers = [(b"content-type", metrics.CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": 200 if is_found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    return application
