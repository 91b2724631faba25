"""`python -m gateway` from outside: start, its record, its end."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.process import dying_with_parent
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica, text_of
from tests.support.running_gateway import MODEL, EventStream, put_model, running_gateway, text_in

ROOT = Path(__file__).parents[2]


class Process:
    """A gateway in a process of its own."""

    def __init__(self, broker: EmbeddedBroker, tmp_path: Path) -> None:
        bus = broker.bus_settings("gateway")
        config = tmp_path / "gateway.toml"
        config.write_text(f'[bus]\nurl = "{bus.url}"\nuser = "{bus.user}"\npassword = "{bus.password}"\n')
        command = [sys.executable, "-m", "gateway", "--config", str(config), "--json"]
        command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        self.log = tmp_path / "gateway.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, preexec_fn=dying_with_parent()
            )

    async def ready(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = await asyncio.to_thread(self.popen.stdout.readline)
        where: dict[str, Any] = json.loads(line)
        return where

    async def wait(self, timeout_s: float) -> int:
        return await asyncio.to_thread(self.popen.wait, timeout_s)


@pytest.fixture
async def process(broker: EmbeddedBroker, bus: Bus, tmp_path: Path) -> AsyncIterator[Process]:
    await put_model(bus)
    process = Process(broker, tmp_path)
    yield process
    process.popen.kill()
    process.popen.wait()
    assert process.popen.stdout is not None
    process.popen.stdout.close()


async def test_it_is_in_the_fleet_while_it_lives(process: Process, bus: Bus) -> None:
    where = await process.ready()
    async with Fleet(bus) as fleet:
        await fleet.wait_for(lambda fleet: where["gateway"] in fleet.gateways, timeout_s=5)
        record = fleet.gateways[where["gateway"]]
        assert record.url == where["url"]
        process.popen.send_signal(signal.SIGTERM)
        assert await process.wait(10) == 0
        await fleet.wait_for(lambda fleet: not fleet.gateways, timeout_s=2)  # deleted, not expired


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_ends_streams_with_an_error_and_cancels_their_jobs(
    process: Process, broker: EmbeddedBroker, bus: Bus, signum: int
) -> None:
    where = await process.ready()
    replica = await FakeReplica.start(broker, MODEL)
    replica.go(3)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 99}
    async with (
        httpx.AsyncClient(base_url=where["url"], timeout=30) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        stream = EventStream(answer)
        await stream.content(3)
        process.popen.send_signal(signum)
        events = await stream.rest()
        assert text_in(events) == text_of(0, 3)
        assert events[-1]["error"]["code"] == "shutting_down"
    assert await process.wait(10) == 0
    await eventually(lambda: (replica.received[0].id, 1) in replica.cancelled)
    await eventually(lambda: _is_queue_empty(bus))
    await replica.close()
    assert "outcome=shutting_down" in process.log.read_text()


async def _is_queue_empty(bus: Bus) -> bool:
    return int((await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"]) == 0


async def test_it_ends_in_time_when_the_broker_is_gone(process: Process, broker: EmbeddedBroker) -> None:
    await process.ready()
    broker.kill()
    process.popen.send_signal(signal.SIGTERM)
    assert await process.wait(10) == 0


async def test_an_address_in_use_is_said_plainly(process: Process) -> None:
    where = await process.ready()
    command = [sys.executable, "-m", "gateway", "--listen", f"127.0.0.1:{where['port']}"]
    second = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert second.returncode == 1
    assert second.stderr == f"cannot listen on 127.0.0.1:{where['port']}: Address already in use\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_one_address_for_api_and_metrics_is_refused(unused_tcp_port: int, host: str) -> None:
    listen = ["--listen", f"127.0.0.1:{unused_tcp_port}", "--metrics-listen", f"{host}:{unused_tcp_port}"]
    command = [sys.executable, "-m", "gateway", *listen]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"cannot share port {unused_tcp_port}" in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_unknown_setting_is_said_plainly(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("lissten = 1\n")
    command = [sys.executable, "-m", "gateway", "--config", str(config)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "listen" in done.stderr
    assert "Traceback" not in done.stderr


async def test_background_streams_of_a_killed_gateway_end_at_another(
    process: Process, broker: EmbeddedBroker, bus: Bus
) -> None:
    where = await process.ready()
    replica = await FakeReplica.start(broker, MODEL)
    replica.go(2)
    body = {"model": MODEL, "input": "hi", "background": True, "stream": True}
    seen: list[dict[str, Any]] = []
    async with (
        running_gateway(broker) as gateway,
        httpx.AsyncClient() as http,
        http.stream("POST", f"{where['url']}/v1/responses", json=body) as answer,
    ):
        with contextlib.suppress(httpx.TransportError):
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line.removeprefix("data: ")))
                    if seen[-1].get("delta") == " t1":
                        process.popen.kill()
        await asyncio.to_thread(process.popen.wait)
        # Its record expires within five seconds, which are not waited for here.
        await Bucket(bus, names.FLEET).delete(names.gateway_key(where["gateway"]))
        url = f"/v1/responses/{seen[0]['response']['id']}?stream=true&starting_after={seen[-1]['sequence_number']}"
        text = (await gateway.http.get(url)).text
        (last,) = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert (last["type"], last["sequence_number"]) == ("response.failed", len(seen))
        assert "gone" in last["response"]["error"]["message"]
    await replica.close()
