"""The events of a background response as a stream: those that are kept, and those that come, from any gateway."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import Message, Receive, Send

from gateway import sse
from gateway.dialects.openai_responses_answer import event_bytes
from gateway.errors import ApiError
from gateway.request import Waiting
from gateway.responses.background import Background
from gateway.responses.store import FINAL, Stored
from shared import log as logs

CHECK_S = 1.0  # without news, before it is looked whether there are any that nobody told of
LOOK_S = 15.0  # likewise, before the record is read again

log = logs.get(__name__)


async def send_stream(events: AsyncGenerator[bytes], start: Message, receive: Receive, send: Send) -> None:
    """Send all events as the body of an answer, until they end or the client leaves."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def write() -> None:
        await send(start)
        async with aclosing(events):
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    writing = asyncio.create_task(write())
    watching = asyncio.create_task(watch())
    try:
        await asyncio.wait((writing, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (writing, watching):
            task.cancel()
        results = await asyncio.gather(writing, watching, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def follow(background: Background, record: Stored, after: int = -1) -> AsyncGenerator[bytes]:
    """The events of `record` with sequence numbers above `after`, until the last one, which comes at least.

    Only nothing comes when `after` is the number of that one: whoever knows it has had it.

    1. What is kept is sent. 2. Then it waits to be told of more. 3. Told in vain, or when it seems that nobody works on
    the response, the record is read: it may have been deleted, and if its gateway is gone it ends here; one that is
    final is given time to keep its last events. Records are large, so without a reason that is done seldom. 4. A sign
    of life goes out when one is due, which bears the number of the event before it, so that it changes nothing for
    whoever counts.
    """
    identifier = record.response["id"]
    loop = asyncio.get_running_loop()
    moved = asyncio.Event()
    subscription = await background.watch(identifier, moved)
    place, seen, told = 0, after, loop.time()
    looked = loop.time()  # at the record
    final = 0.0  # when the record was first seen to be
    is_told = False
    pace_s = min(CHECK_S, background.keepalive_s)
    try:
        while True:
            moved.clear()
            try:
                runs, place = await background.events.read(identifier, place)
                for run in runs:  # 1
                    is_beyond = run.is_last and after > run.last
                    if data := run.after(run.last - 1 if is_beyond else after):
                        yield data
                        told = loop.time()
                    seen = run.last
                    if run.is_last:
                        return
                if runs:
                    is_told = False
                    continue
                is_due = is_told or loop.time() - looked > LOOK_S
                if is_due or not background.seems_alive(record):  # 3
                    found = await background.store.get(identifier)
                    if found is None:
                        yield _deleted(record, seen + 1)
                        return
                    record = await background.current(found)
                    looked = loop.time()
                    if record.response["status"] in FINAL:
                        final = final or looked
                        if not background.may_write(record, looked - final):
                            await background.end_events(record)
                is_told = await _told(moved, pace_s)  # 2
            except ApiError as error:  # the bus is away: it is waited for
                log.warning("follow.waits", response=identifier, error=error.message)
                await _told(moved, pace_s)
            if not is_told and loop.time() - told >= background.keepalive_s:  # 4
                yield _alive(record, max(seen, 0))
                told = loop.time()
    finally:
        await subscription.unsubscribe()


async def _told(moved: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await moved.wait()
    except TimeoutError:
        return False
    return True


def _alive(record: Stored, number: int) -> bytes:
    status = "in_progress" if number > 1 else record.response["status"]
    fields = {"sequence_number": number, "response": record.response | {"status": status}}
    return sse.comment(Waiting(status)) + event_bytes("response.in_progress", fields)


def _deleted(record: Stored, number: int) -> bytes:
    error = {"code": "server_error", "message": "The response was deleted, or has expired."}
    response = record.response | {"status": "failed", "error": error}
    return event_bytes("response.failed", {"sequence_number": number, "response": response})
