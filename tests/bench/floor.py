"""The floor under the first token: one job through the queue and one message back, and nothing else at all.

Two processes, the library as it comes: publish into the job stream, a standing prioritized pull gets it, one core
message answers, the job is acknowledged. Same nats-server, same stream and consumer as the fleet's, same kind of load
as one client alone: the next job goes out when the last was answered.
"""

import asyncio
import json
import sys
import time
from typing import Any

import nats
import uvloop

from shared import names
from shared.bus import Bus
from shared.settings import BusSettings

MODEL = "floor"
ANSWERS = "plexus.gw.floor.tok"
PAYLOAD = b"x" * 400  # about what a short chat makes


async def run(settings: BusSettings, num_jobs: int) -> list[float]:
    """Seconds from each publish to its answer; the other end is a process of its own."""
    async with await Bus.connect(settings, kind="cli", ident="floor") as bus:
        await bus.ensure_consumer(MODEL, "interactive")
    client = await _connect(settings)
    answered = asyncio.Event()

    async def on_answer(_: object) -> None:
        answered.set()

    await client.subscribe(ANSWERS, cb=on_answer)
    await client.flush()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.floor", settings.model_dump_json(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    seconds = []
    try:
        for number in range(num_jobs):
            answered.clear()
            started = time.perf_counter()
            headers = {names.MSG_ID: f"floor.{started}.{number}", names.EXPECTED_STREAM: names.JOBS}
            subject = names.job_subject(MODEL, "interactive")
            await client.publish(subject, PAYLOAD, reply="plexus.gw.floor.ack", headers=headers)
            await asyncio.wait_for(answered.wait(), 5)
            seconds.append(time.perf_counter() - started)
    finally:
        process.kill()
        await process.wait()
        await client.close()
    return seconds


async def _connect(settings: BusSettings) -> Any:
    return await nats.connect(
        settings.url, user=settings.user, password=settings.password, inbox_prefix=settings.inbox_prefix or "_INBOX"
    )


async def _answer(settings: BusSettings) -> None:
    client = await _connect(settings)
    inbox = client.new_inbox()
    request = json.dumps({"batch": 1, "expires": 30_000_000_000, "group": names.PRIORITY_GROUP, "priority": 0}).encode()

    async def pull() -> None:
        await client.publish(names.pull_subject(MODEL, "interactive"), request, reply=inbox)

    async def on_message(message: Any) -> None:
        if message.data:
            await client.publish(ANSWERS, b"token")
            await client.publish(message.reply, b"+ACK")
        await pull()

    await client.subscribe(inbox, cb=on_message)
    await pull()
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_answer(BusSettings.model_validate_json(sys.argv[1])))
