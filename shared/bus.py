"""The bus: the hardened connection, and what Plexus asks of JetStream through it."""

import asyncio
import math
import time
from typing import Any

import msgspec
from nats.aio.msg import Msg

from shared import names
from shared.connection import OUTBOUND_BYTES, RECONNECT_WAIT_S, Answer, Connection, Kind, Subscription
from shared.errors import ApiError, BusError, BusTimeout, BusUnavailable, NoResponders, PayloadTooLarge, QueueFull
from shared.names import JobClass
from shared.settings import BusSettings

__all__ = ["OUTBOUND_BYTES", "Answer", "Bus", "Kind", "Msg", "PubAck", "Subscription"]

ENQUEUE_S = 10.0  # how long enqueue tries over an outage
ATTEMPT_S = 2.0
ENSURED_S = 60.0  # how long a created consumer is taken to exist
MAX_ENSURED = 10_000

_STREAM_FULL = 10077
_MESSAGE_TOO_LARGE = 10054
_NOT_FOUND = {10014, 10043, 10057, 10059}  # consumer, sequence, message to delete, stream


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """JetStream's answer to a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decode_ack = msgspec.json.Decoder(PubAck).decode
_encode = msgspec.json.encode


class Bus(Connection):
    """One connection of a process. Make it with `connect`, end it with `close` or `async with`."""

    def __init__(self, settings: BusSettings, kind: Kind, ident: str) -> None:
        super().__init__(settings, kind, ident)
        self._ensured: dict[str, float] = {}  # consumer → monotonic second until when it is taken to exist
        self.on_reconnect(self._forget_ensured)

    @property
    def has_priority_pulls(self) -> bool:
        """Does the server know prioritized consumers (2.12 and later)? Without, pulls carry no group and priority."""
        return bool(self._client.server_version >= (2, 12))

    def post(self, subject: str, payload: bytes, msg_id: str, ttl_s: float | None) -> Answer:
        """Send a job on its way into the queue, at once. The answer belongs into `enqueue`. Raises as `send`."""
        return self.ask(subject, payload, timeout_s=ATTEMPT_S, headers=_job_headers(msg_id, ttl_s))

    async def enqueue(
        self, subject: str, payload: bytes, msg_id: str, ttl_s: float | None, *, posted: Answer | None = None
    ) -> int:
        """Put a job into the queue and return its stream sequence. `posted`: of `post`, if it is on its way already.

        Tried again with the same id for up to 10 s, so that an outage neither loses nor doubles it.
        Raises QueueFull, PayloadTooLarge, BusUnavailable, ApiError.
        """
        deadline = time.monotonic() + ENQUEUE_S
        while True:
            try:
                if posted is None:
                    await self._until_connected(deadline)
                    posted = self.post(subject, payload, msg_id, ttl_s)
                answer, posted = posted, None
                ack = publish_ack(subject, await answer.message())
            except (NoResponders, BusTimeout, BusUnavailable) as error:
                if time.monotonic() > deadline - RECONNECT_WAIT_S:
                    raise BusUnavailable(f"the queue was not reachable for {ENQUEUE_S:g} s") from error
                await asyncio.sleep(RECONNECT_WAIT_S)
                continue
            if ack.error is None:
                return ack.seq
            if ack.error.err_code == _STREAM_FULL:
                raise QueueFull(subject)
            if ack.error.err_code == _MESSAGE_TOO_LARGE:
                raise PayloadTooLarge(len(payload), self.max_payload)
            if ack.error.code != 503 or time.monotonic() > deadline - RECONNECT_WAIT_S:
                raise ApiError(subject, ack.error.code, ack.error.err_code, ack.error.description)
            await asyncio.sleep(RECONNECT_WAIT_S)

    async def api(self, subject: str, body: dict[str, Any], *, timeout_s: float = 2.0) -> dict[str, Any]:
        """A request to ``$JS.API.<subject>``. Raises ApiError with JetStream's `err_code`, and as `request`."""
        full = f"$JS.API.{subject}"
        data = await self.request(full, _encode(body), timeout_s=timeout_s)
        try:
            answer: dict[str, Any] = msgspec.json.decode(data, type=dict)
        except msgspec.MsgspecError as error:
            raise BusError(f"{full}: the answer is no JSON object: {data[:120]!r}") from error
        if refused := answer.get("error"):
            raise ApiError(full, refused.get("code", 0), refused.get("err_code", 0), refused.get("description", ""))
        return answer

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Take a message out of a stream without overwriting it on disk. False if it was already gone."""
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.err_code in _NOT_FOUND:
                return False
            raise
        return True

    async def consumer_info(self, stream: str, consumer: str) -> dict[str, Any] | None:
        """JetStream's account of a consumer; None if there is none."""
        try:
            return await self.api(f"CONSUMER.INFO.{stream}.{consumer}", {})
        except ApiError as error:
            if error.err_code in _NOT_FOUND:
                self._ensured.pop(consumer, None)
                return None
            raise

    def is_ensured(self, model: str, job_class: JobClass) -> bool:
        """Whether `ensure_consumer` would return at once."""
        return self._ensured.get(names.job_consumer(model, job_class), 0.0) > time.monotonic()

    async def ensure_consumer(self, model: str, job_class: JobClass) -> None:
        """Make sure that replicas can pull the jobs of this model and class.

        Cheap to call before every job: the answer is remembered for a minute, or until the next reconnect.
        """
        consumer = names.job_consumer(model, job_class)
        if self.is_ensured(model, job_class):
            return
        subject = names.job_subject(model, job_class)
        config: dict[str, Any] = {
            "name": consumer,
            "durable_name": consumer,
            "filter_subject": subject,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": 5_000_000_000,
            "max_deliver": 6,
            "max_ack_pending": -1,
            "inactive_threshold": 3600_000_000_000,
        }
        if self.has_priority_pulls:
            config |= {"priority_policy": "prioritized", "priority_groups": [names.PRIORITY_GROUP]}
        await self.api(
            f"CONSUMER.CREATE.{names.JOBS}.{consumer}.{subject}",
            {"stream_name": names.JOBS, "config": config, "action": ""},
        )
        if len(self._ensured) >= MAX_ENSURED:
            self._ensured.clear()
        self._ensured[consumer] = time.monotonic() + ENSURED_S

    async def _forget_ensured(self) -> None:
        self._ensured.clear()


def ttl_header(ttl_s: float) -> str:
    """A lifetime as the server wants it: whole seconds, at least one."""
    return f"{max(1, math.ceil(ttl_s))}s"


def _job_headers(msg_id: str, ttl_s: float | None) -> dict[str, str]:
    headers = {names.MSG_ID: msg_id, names.EXPECTED_STREAM: names.JOBS}
    if ttl_s is not None:
        headers[names.MSG_TTL] = ttl_header(ttl_s)
    return headers


def publish_ack(subject: str, message: Msg) -> PubAck:
    """The acknowledgement in an answer of JetStream. Raises BusError when it is none."""
    try:
        return _decode_ack(message.data)
    except msgspec.MsgspecError as error:
        raise BusError(f"{subject}: the answer is no acknowledgement: {bytes(message.data)[:120]!r}") from error
