"""The broker is killed again and again while requests run, wait and arrive: nothing is lost."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.bus import Bus
from shared.names import JOBS
from tests.support.eventually import eventually
from tests.support.fleet_process import FleetProcess, chat_body
from tests.support.tiny import make_checkpoint

KILLS = 3
CLIENTS = 24
REQUESTS_EACH = 2


def body(number: int) -> dict[str, Any]:
    """Half of them greedy, half sampled; all of known length."""
    return chat_body(
        "busy",
        f"Tell me about the number {number}.",
        max_tokens=60 + 10 * (number % 5),
        ignore_eos=True,
        temperature=number % 2,
    )


async def answer(http: httpx.AsyncClient, api: str, number: int) -> str:
    """The text of one whole answer; AssertionError for anything but success."""
    response = await http.post(f"{api}/chat/completions", json=body(number))
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "length"
    return str(choice["message"]["content"])


@pytest.mark.timeout(300)
async def test_nothing_is_lost_when_the_broker_is_killed_under_load(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "busy", seed=5)
    with FleetProcess(tmp_path, "--model", model) as fleet:
        await asyncio.to_thread(fleet.started)
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=CLIENTS)) as http:
            expected = [await answer(http, fleet.api, number) for number in range(CLIENTS)]

            async def client(number: int) -> None:
                for _ in range(REQUESTS_EACH):
                    assert await answer(http, fleet.api, number) == expected[number]

            tasks = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
            killed = 0
            while killed < KILLS and not all(task.done() for task in tasks):
                pid = fleet.now().pids["nats"]
                os.kill(pid, signal.SIGKILL)
                killed += 1
                await eventually(lambda pid=pid: fleet.now().pids["nats"] not in (0, pid))  # type: ignore[misc]
                await asyncio.sleep(0.5)  # some work between two blows
            await asyncio.gather(*tasks)
        assert killed == KILLS, "the load was over before the kills: ask for more"

        async with await Bus.connect(fleet.bus_settings(), kind="cli", ident="test") as bus:

            async def is_empty() -> bool:
                return (await bus.api(f"STREAM.INFO.{JOBS}", {}))["state"]["messages"] == 0

            await eventually(is_empty, timeout_s=20, pause_s=0.1)
        assert fleet.end() == 0
