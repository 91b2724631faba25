"""The requests that the stock `nats` command line sends, as read in the sources of natscli, jsm.go and nats.go.

The program itself is not needed, so whoever runs the tests needs no Go. Each method is one command: it sends what that
command sends, as the user whom an operator has, and returns what the command would print from.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.bus import Bus, Msg

SNAPPY = {"Accept-Encoding": "snappy"}  # offered by `nats micro`; answering in plain JSON is allowed
GATHER_S = 0.3  # `nats micro` waits so long after the last answer
_S = 1_000_000_000


class NatsCli:
    """`nats` with a context that names the operator's user."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    # --- stream, consumer ------------------------------------------------------------------------------------

    async def stream_ls(self) -> list[dict[str, Any]]:
        """`nats stream ls`, `nats stream report`."""
        return await self._paged("STREAM.LIST", "streams")

    async def stream_names(self) -> list[str]:
        """What completions and other commands ask for first."""
        return await self._paged("STREAM.NAMES", "streams")

    async def stream_info(self, stream: str, subjects: str = "") -> dict[str, Any]:
        """`nats stream info STREAM`; with its subjects `nats stream subjects STREAM`."""
        return await self._bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": subjects} if subjects else {})

    async def stream_get(self, stream: str, seq: int) -> dict[str, Any]:
        """`nats stream get STREAM SEQ`."""
        answer = await self._bus.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})
        found: dict[str, Any] = answer["message"]
        return found

    async def consumer_ls(self, stream: str) -> list[str]:
        """`nats consumer ls STREAM`."""
        await self.stream_info(stream)
        return await self._paged(f"CONSUMER.NAMES.{stream}", "consumers")

    async def consumer_report(self, stream: str) -> list[dict[str, Any]]:
        """`nats consumer report STREAM`."""
        await self.stream_info(stream)
        return await self._paged(f"CONSUMER.LIST.{stream}", "consumers")

    async def consumer_info(self, stream: str, consumer: str) -> dict[str, Any]:
        """`nats consumer info STREAM CONSUMER`."""
        return await self._bus.api(f"CONSUMER.INFO.{stream}.{consumer}", {})

    async def consumer_next(self, stream: str, consumer: str) -> Msg:
        """`nats consumer next STREAM CONSUMER`."""
        request = json.dumps({"batch": 1, "expires": _S}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        return await self._bus.request_message(subject, request, timeout_s=2.0)

    async def _paged(self, what: str, key: str) -> list[Any]:
        found: list[Any] = []
        while True:
            page = await self._bus.api(what, {"offset": len(found)})
            assert {"offset", "total", "limit"} <= page.keys(), f"{what} does not page"
            found += page.get(key) or []
            if not page.get(key) or len(found) >= page["total"]:
                return found

    # --- kv --------------------------------------------------------------------------------------------------

    async def kv_buckets(self) -> list[str]:
        """`nats kv ls`."""
        return [one["config"]["name"][3:] for one in await self.stream_ls() if one["config"]["name"].startswith("KV_")]

    async def kv_ls(self, bucket: str) -> list[str]:
        """`nats kv ls BUCKET`."""
        await self.kv_info(bucket)
        async with self._ordered(bucket, ">", "last_per_subject", headers_only=True) as (pending, messages):
            found = [await _next(messages) for _ in range(pending)]
        return sorted(_key(one) for one in found if _operation(one) == "PUT")

    async def kv_get(self, bucket: str, key: str) -> bytes:
        """`nats kv get BUCKET KEY`. Raises KeyError."""
        info = await self.kv_info(bucket)
        assert info["config"]["allow_direct"], "without direct gets it would ask STREAM.MSG.GET"
        subject = f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{key}"
        answer = await self._bus.request_message(subject, b"", timeout_s=2.0)
        headers = answer.headers or {}
        if headers.get("Status") == "404" or _operation(answer) != "PUT":
            raise KeyError(key)
        assert headers["Nats-Subject"] == f"$KV.{bucket}.{key}"
        return bytes(answer.data)

    async def kv_put(self, bucket: str, key: str, value: str, headers: dict[str, str] | None = None) -> int:
        """`nats kv put BUCKET KEY VALUE`; its revision."""
        await self.kv_info(bucket)
        answer = await self._bus.request_message(
            f"$KV.{bucket}.{key}", value.encode(), timeout_s=2.0, headers=headers or None
        )
        facts = json.loads(answer.data)
        assert "error" not in facts, facts
        return int(facts["seq"])

    async def kv_del(self, bucket: str, key: str) -> None:
        """`nats kv del BUCKET KEY`."""
        await self.kv_put(bucket, key, "", {"KV-Operation": "DEL"})

    async def kv_purge(self, bucket: str, key: str) -> None:
        """`nats kv purge BUCKET KEY`."""
        await self.kv_put(bucket, key, "", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"})

    async def kv_history(self, bucket: str, key: str) -> list[tuple[int, str, bytes]]:
        """`nats kv history BUCKET KEY`: revision, operation and value of each."""
        await self.kv_info(bucket)
        async with self._ordered(bucket, key, "all") as (pending, messages):
            found = [await _next(messages) for _ in range(pending)]
        return [(_revision(one), _operation(one), bytes(one.data)) for one in found]

    @asynccontextmanager
    async def kv_watch(self, bucket: str, keys: str = ">") -> AsyncIterator["asyncio.Queue[tuple[str, str, bytes]]"]:
        """`nats kv watch BUCKET [KEY]`: key, operation and value of everything there is, and then of what comes."""
        await self.kv_info(bucket)
        seen: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue()

        async def pass_on() -> None:
            while True:
                message = await messages.get()
                if message.subject.startswith("$KV."):
                    seen.put_nowait((_key(message), _operation(message), bytes(message.data)))

        async with self._ordered(bucket, keys, "last_per_subject") as (_, messages):
            task = asyncio.create_task(pass_on())
            try:
                yield seen
            finally:
                task.cancel()

    async def kv_info(self, bucket: str) -> dict[str, Any]:
        """`nats kv info BUCKET`; also what each of the other commands asks first."""
        info = await self.stream_info(f"KV_{bucket}")
        assert info["config"]["max_msgs_per_subject"] >= 1, "bad bucket"
        return info

    @asynccontextmanager
    async def _ordered(
        self, bucket: str, keys: str, policy: str, *, headers_only: bool = False
    ) -> AsyncIterator[tuple[int, "asyncio.Queue[Msg]"]]:
        """An ordered push consumer, as nats.go makes it: how much there is, and what is pushed, heartbeats apart."""
        inbox = self._bus.new_inbox()
        messages: asyncio.Queue[Msg] = asyncio.Queue()

        async def take(message: Msg) -> None:
            if message.reply and not message.subject.startswith("$KV."):  # flow control
                await self._bus.publish(message.reply, b"")
            elif message.reply.startswith("$JS.ACK."):
                messages.put_nowait(message)

        subscription = await self._bus.subscribe(inbox, take)
        config = {
            "deliver_subject": inbox,
            "deliver_policy": policy,
            "filter_subject": f"$KV.{bucket}.{keys}",
            "ack_policy": "none",
            "ack_wait": 22 * 3600 * _S,
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": 5 * _S,
            "num_replicas": 1,
            "mem_storage": True,
            **({"headers_only": True} if headers_only else {}),
        }
        stream = f"KV_{bucket}"
        try:
            made = await self._bus.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
            yield made["num_pending"] + made["delivered"]["consumer_seq"], messages
            await self._bus.api(f"CONSUMER.DELETE.{stream}.{made['name']}", {})
        finally:
            await subscription.unsubscribe()

    # --- micro, req, sub -------------------------------------------------------------------------------------

    async def micro(self, verb: str, *scope: str) -> list[dict[str, Any]]:
        """`nats micro ls|ping|info|stats [NAME [ID]]`: every answer, until there is none for a while."""
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe(inbox, answers.put)
        found = []
        try:
            await self._bus.publish(".".join(("$SRV", verb, *scope)), b"{}", reply=inbox, headers=SNAPPY)
            while True:
                try:
                    async with asyncio.timeout(GATHER_S):
                        message = await answers.get()
                except TimeoutError:
                    return found
                headers = message.headers or {}
                if headers.get("Status") == "503":
                    return found
                assert "Content-Encoding" not in headers
                found.append(json.loads(message.data))
        finally:
            await subscription.unsubscribe()

    async def req(self, subject: str, body: str) -> dict[str, Any]:
        """`nats req SUBJECT BODY`."""
        answer: dict[str, Any] = json.loads(await self._bus.request(subject, body.encode(), timeout_s=2.0))
        return answer

    @asynccontextmanager
    async def sub(self, subject: str) -> AsyncIterator["asyncio.Queue[Msg]"]:
        """`nats sub SUBJECT`."""
        messages: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = await self._bus.subscribe(subject, messages.put)
        await self._bus.flush()
        yield messages
        await subscription.unsubscribe()


async def _next(messages: "asyncio.Queue[Msg]") -> Msg:
    async with asyncio.timeout(5.0):
        return await messages.get()


def _key(message: Msg) -> str:
    return str(message.subject).split(".", 2)[2]


def _operation(message: Msg) -> str:
    """PUT, DEL or PURGE; markers that the server itself leaves count, too."""
    headers = message.headers or {}
    marker = {"MaxAge": "PURGE", "Purge": "PURGE", "Remove": "DEL"}.get(headers.get("Nats-Marker-Reason", ""), "PUT")
    return str(headers.get("KV-Operation", marker))


def _revision(message: Msg) -> int:
    """Of the stream: ``$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>…``, in the older of the two forms."""
    parts = message.reply.split(".")
    return int(parts[5] if len(parts) == 9 else parts[7])
