"""The connection to the nats-server that every process uses.

It reconnects for ever, refuses what would cost it the connection, tells a dead peer from a slow one, and survives the
defects of the client library: a watchdog reconnects when the read loop died and builds a new client when the old one
closed for good. Subscriptions move along.
"""

import asyncio
import contextlib
import enum
import functools
import itertools
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, Self

import nats.errors
from nats.aio.msg import Msg

from shared import log as logs
from shared import names
from shared.client import GuardedClient, header_block, publish_command
from shared.errors import (
    BadSubject,
    BusTimeout,
    BusUnavailable,
    NoResponders,
    PayloadTooLarge,
)
from shared.settings import BusSettings

Kind = Literal["gateway", "replica", "worker", "cli"]

OUTBOUND_BYTES = 64 << 20  # what may wait for a connection before publish refuses
RECONNECT_WAIT_S = 0.1
PING_S = 2  # twice unanswered: the connection is dead
WATCHDOG_S = 0.25
MAX_SUBJECTS = 3800  # bytes of subject and reply; the server's limit for the whole command line is 4096

log = logs.get(__name__)


class _Lost(enum.Enum):
    """Why a request has no answer."""

    TIME = enum.auto()
    CONNECTION = enum.auto()


_Future = asyncio.Future[Msg | _Lost]
_SPACE = re.compile(r"\s")


class Subscription:
    """Interest in a subject, kept over every reconnect until `unsubscribe`. Messages are handled one at a time."""

    def __init__(
        self,
        connection: "Connection",
        subject: str,
        queue: str,
        callback: Callable[[Msg], Awaitable[None]] | None,
        listener: Callable[[Msg], None] | None = None,
    ) -> None:
        self.subject = subject
        self._connection = connection
        self._queue = queue
        self._callback = callback
        self._listener = listener
        self._inner: Any = None

    async def unsubscribe(self) -> None:
        """End it; messages not yet handled are dropped. May be called twice."""
        self._connection._subscriptions.discard(self)
        inner, self._inner = self._inner, None
        if inner is not None:
            with contextlib.suppress(nats.errors.Error):
                await inner.unsubscribe()

    async def _attach(self, client: GuardedClient) -> None:
        if self._listener is not None:
            self._inner = await client.listen(self.subject, self._queue, self._hear)
        else:
            self._inner = await client.subscribe(self.subject, queue=self._queue, cb=self._handle)

    def _hear(self, message: Msg) -> None:
        assert self._listener is not None
        try:
            self._listener(message)
        except Exception:
            log.exception("bus.callback_failed", subject=message.subject)

    async def _handle(self, message: Msg) -> None:
        assert self._callback is not None
        try:
            await self._callback(message)
        except asyncio.CancelledError:
            # Only a cancelled subscription may end here. A callback that awaited something cancelled would else
            # silently end the library's loop for this subscription.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.warning("bus.callback_cancelled", subject=message.subject)
        except Exception:
            log.exception("bus.callback_failed", subject=message.subject)


class Answer:
    """The answer to a question that is under way. Await `message` once, or `drop` it."""

    __slots__ = ("_connection", "_future", "_subject", "_timeout_s", "_timer", "_token")

    def __init__(self, connection: "Connection", subject: str, token: str, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._subject = subject
        self._token = token
        self._timeout_s = timeout_s
        self._future: _Future = loop.create_future()
        self._timer = loop.call_later(timeout_s, _settle, self._future, _Lost.TIME)
        connection._waiting[token] = self._future

    async def message(self) -> Msg:
        """The answer. Raises NoResponders, BusTimeout, BusUnavailable."""
        try:
            message = await self._future
        finally:
            self.drop()
        if message is _Lost.CONNECTION or (message is _Lost.TIME and not self._connection.is_connected):
            raise BusUnavailable(f"the connection was lost while {self._subject} was asked")
        if message is _Lost.TIME:
            raise BusTimeout(self._subject, self._timeout_s)
        if message.headers and message.headers.get(names.STATUS) == "503":
            raise NoResponders(self._subject)
        return message

    def drop(self) -> None:
        """Wait no more. May be called twice."""
        self._timer.cancel()
        self._connection._waiting.pop(self._token, None)


class Connection:
    """One connection, without JetStream: use `shared.bus.Bus`, which adds that."""

    def __init__(self, settings: BusSettings, kind: Kind, ident: str) -> None:
        self._settings = settings
        self._name = names.client_name(kind, ident)
        self._inbox = settings.inbox_prefix or (f"_INBOX_{settings.user}" if settings.user else "_INBOX")
        self._client = GuardedClient()
        self._subscriptions: set[Subscription] = set()
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()
        self._closing = False
        self._last_error: Exception | None = None
        self._logged: tuple[str, float] = ("", 0.0)
        self._answers = f"{self._inbox}.{names.new_id()}."
        self._tokens = itertools.count()
        self._waiting: dict[str, _Future] = {}

    @classmethod
    async def connect(cls, settings: BusSettings, *, kind: Kind, ident: str, wait: bool = True) -> Self:
        """Connect. With `wait`, keep trying until there is a server; without, raise BusUnavailable soon."""
        bus = cls(settings, kind, ident)
        try:
            await bus._open(bus._client, wait)
            await bus.listen(f"{bus._answers}*", bus._take_answer)
        except BaseException:
            await bus.close()
            raise
        bus._connected.set()
        bus._spawn(bus._watch())
        return bus

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is buffered and end the connection. May be called twice."""
        if self._closing:
            return
        self._closing = True
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drop_requests()
        with contextlib.suppress(Exception):
            await self._client.close()

    @property
    def is_connected(self) -> bool:
        """Is there a working connection at this moment?"""
        return bool(self._client.is_connected) and not self._client.is_stuck

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, headers included, in bytes."""
        return int(self._client.max_payload)

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Call this after each reconnect, in a task of its own. Exceptions are logged. The result takes it back."""
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    # --- core -------------------------------------------------------------------------------------------------

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """As `send`, but waits for a full socket: for whoever sends much."""
        if self._client.has_room:
            self.send(subject, payload, reply=reply, headers=headers)
            return
        self._check(subject, reply, len(header_block(headers)) + len(payload))
        task = asyncio.current_task()
        num_cancels = task.cancelling() if task is not None else 0
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
        except nats.errors.BadSubjectError as error:
            raise BadSubject(subject) from error
        except nats.errors.OutboundBufferLimitError as error:
            raise BusUnavailable(f"no connection, and {OUTBOUND_BYTES} bytes already wait for one") from error
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"cannot publish: {error}") from error
        if task is not None and task.cancelling() > num_cancels:
            raise asyncio.CancelledError  # which the library swallows while it waits for a full socket

    def send(self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Hand a message to the connection; it may still be lost with it.

        Raises PayloadTooLarge, BadSubject, and BusUnavailable when what waits to be sent fills its buffer.
        """
        head = header_block(headers)
        self._check(subject, reply, len(head) + len(payload))
        try:
            self._client.send(publish_command(subject, reply, payload, head))
        except nats.errors.OutboundBufferLimitError as error:
            raise BusUnavailable(f"{OUTBOUND_BYTES} bytes already wait to be sent") from error

    def _check(self, subject: str, reply: str, size: int) -> None:
        if size > self._client.max_payload:
            # The server answers an oversized message with an error on which the library closes for good.
            raise PayloadTooLarge(size, self.max_payload)
        if len(subject) + len(reply) > MAX_SUBJECTS or not subject or _SPACE.search(subject) or _SPACE.search(reply):
            raise BadSubject(subject)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask and return the answer. Raises NoResponders, BusTimeout, BusUnavailable, PayloadTooLarge."""
        message = await self.request_message(subject, payload, timeout_s=timeout_s)
        return bytes(message.data)

    async def request_message(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """As `request`, but with headers, and returns the whole answer."""
        return await self.ask(subject, payload, timeout_s=timeout_s, headers=headers).message()

    def ask(self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None) -> Answer:
        """Send a question at once; its answer is awaited apart. Raises as `send`."""
        answer = Answer(self, subject, f"{next(self._tokens):x}", timeout_s)
        try:
            self.send(subject, payload, reply=self._answers + answer._token, headers=headers)
        except BaseException:
            answer.drop()
            raise
        return answer

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Call back for every message on the subject, one after another. Exceptions of the callback are logged."""
        return await self._attached(Subscription(self, subject, queue, callback))

    async def listen(self, subject: str, listener: Callable[[Msg], None], *, queue: str = "") -> Subscription:
        """As `subscribe`, for what neither waits nor takes long: it is called as soon as the message is read."""
        return await self._attached(Subscription(self, subject, queue, None, listener))

    async def _attached(self, subscription: Subscription) -> Subscription:
        self._subscriptions.add(subscription)
        try:
            await subscription._attach(self._client)
        except nats.errors.ConnectionClosedError:
            pass  # a new client is being built; it takes over what is in the set
        except (nats.errors.BadSubjectError, ValueError) as error:
            self._subscriptions.discard(subscription)
            raise BadSubject(subscription.subject) from error
        return subscription

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Wait until the server has seen everything sent so far. Raises BusUnavailable."""
        try:
            await self._client.flush(timeout_s)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"the server did not confirm within {timeout_s:g} s") from error

    def new_inbox(self) -> str:
        """A new subject for answers, which this connection may subscribe to."""
        return f"{self._inbox}.{names.new_id()}"

    # --- the connection ---------------------------------------------------------------------------------------

    async def _open(self, client: GuardedClient, wait: bool) -> None:
        """Connect this client. Raises BusUnavailable; with `wait` only for settings that cannot work."""
        settings = self._settings
        options: dict[str, Any] = {"allow_reconnect": wait, "max_reconnect_attempts": -1 if wait else 1}
        if settings.nkey_seed_file:
            options["nkeys_seed"] = settings.nkey_seed_file
        elif settings.user:
            options |= {"user": settings.user, "password": settings.password}
        try:
            if settings.tls_ca:
                options["tls"] = ssl.create_default_context(cafile=settings.tls_ca)
            async with asyncio.timeout(None if wait else settings.connect_timeout_s):
                await client.connect(
                    [server.strip() for server in settings.url.split(",")],
                    name=self._name,
                    error_cb=self._note_error,
                    disconnected_cb=functools.partial(self._note_disconnect, client),
                    reconnected_cb=self._note_reconnect,
                    reconnect_time_wait=RECONNECT_WAIT_S,
                    connect_timeout=settings.connect_timeout_s,
                    ping_interval=PING_S,
                    max_outstanding_pings=2,
                    pending_size=OUTBOUND_BYTES,
                    flush_timeout=5.0,
                    inbox_prefix=self._inbox,
                    **options,
                )
        except (TimeoutError, nats.errors.Error, OSError) as error:
            reason = self._last_error or error
            raise BusUnavailable(f"no nats-server at {settings.url}: {reason or type(reason).__name__}") from error
        client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}

    async def _note_error(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # what is raised here kills the library's read loop
            self._last_error = error
            text, now = f"{type(error).__name__}: {error}", time.monotonic()
            if text != self._logged[0] or now - self._logged[1] > 10:
                self._logged = (text, now)
                log.warning("bus.error", bus=self._name, error=text)

    async def _note_disconnect(self, client: GuardedClient) -> None:
        if client is not self._client:
            return  # it was slow to close, and has a successor
        self._connected.clear()
        self._drop_requests()
        if not self._closing:
            log.warning("bus.disconnected", bus=self._name)

    async def _note_reconnect(self) -> None:
        self._connected.set()
        log.info("bus.reconnected", bus=self._name)
        for callback in self._on_reconnect:
            self._spawn(self._call(callback))

    async def _call(self, callback: Callable[[], Awaitable[None]]) -> None:
        try:
            await callback()
        except Exception:
            log.exception("bus.reconnect_callback_failed", bus=self._name)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCHDOG_S)
            try:
                await self._look_after()
            except Exception:  # nobody else would notice that the watchdog is gone
                log.exception("bus.watchdog_failed", bus=self._name)

    async def _look_after(self) -> None:
        if self._client.is_closed or (self._client.is_stuck and not self._client.is_connected):
            log.error("bus.rebuild", bus=self._name, error=str(self._last_error))
            await self._rebuild()
        elif self._client.is_stuck:
            log.error("bus.read_loop_dead", bus=self._name)
            await self._client.force_reconnect()

    async def _rebuild(self) -> None:
        self._connected.clear()
        self._drop_requests()
        old, client = self._client, GuardedClient()
        with contextlib.suppress(Exception):
            await old.close()
        try:
            await self._open(client, wait=True)
        except BaseException as error:
            with contextlib.suppress(Exception):
                await client.close()
            if isinstance(error, BusUnavailable):
                return  # the watchdog comes again
            raise
        self._client = client
        try:
            for subscription in list(self._subscriptions):
                await subscription._attach(client)
        except Exception:
            with contextlib.suppress(Exception):
                await client.close()  # half of the subscriptions are worse than none: the watchdog comes again
            raise
        if client.is_connected:  # else it says so itself, once it is again
            await self._note_reconnect()

    async def _until_connected(self, deadline: float) -> None:
        if self._connected.is_set():
            return
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._connected.wait()
        except TimeoutError as error:
            raise BusUnavailable("no connection to the nats-server") from error

    def _take_answer(self, message: Msg) -> None:
        future = self._waiting.get(message.subject[len(self._answers) :])
        if future is not None and not future.done():
            future.set_result(message)

    def _drop_requests(self) -> None:
        for future in self._waiting.values():
            _settle(future, _Lost.CONNECTION)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _settle(future: _Future, lost: _Lost) -> None:
    if not future.done():
        future.set_result(lost)
