"""A client that goes away frees the rank within two step boundaries, through the whole chain, in prefill and decode.

The steps are slow on purpose (the synthetic back end), so that a step lasts far longer than the message's way.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.cli.intents import put_intent, put_model
from shared.bus import Bus
from shared.fleet import Fleet
from shared.messages import Ping, Pong, encode
from shared.names import JOBS, replica_rpc
from shared.records import IntentRecord, ModelRecord
from tests.support.eventually import eventually
from tests.support.fleet_process import FleetProcess, chat_body

MODEL = "slow"
_decode = msgspec.json.Decoder(Pong).decode


class SlowModel:
    """A fleet with a slow replica, and a look at its rank."""

    def __init__(self, fleet: FleetProcess, bus: Bus, replica: str) -> None:
        self.fleet, self.bus, self._replica = fleet, bus, replica

    async def pong(self) -> Pong:
        """Where the rank is."""
        return _decode(await self.bus.request(replica_rpc(self._replica), encode(Ping()), timeout_s=5))

    async def is_in(self, phase: str) -> bool:
        """Whether a job runs, in this phase."""
        pong = await self.pong()
        return pong.running > 0 and pong.phase == phase


@pytest.fixture
async def slow(tmp_path: Path, tiny: Path) -> AsyncIterator[SlowModel]:
    """Prefill steps of half a second, decode steps of a quarter."""
    with FleetProcess(tmp_path, "--model", tiny) as fleet:
        await asyncio.to_thread(fleet.started)
        async with await Bus.connect(fleet.bus_settings(), kind="cli", ident="test") as bus, Fleet(bus) as view:
            options = {"tokens_per_s": 4, "prefill_tokens_per_s": 100, "cache_tokens": 4096}
            await put_model(bus, ModelRecord(id=MODEL, source=str(tiny), backend="synthetic", options=options))
            await put_intent(bus, IntentRecord(model=MODEL, want="loaded", by="test"))
            await view.wait_for(lambda v: any(r.state == "ready" for r in v.replicas_of(MODEL)), timeout_s=60)
            yield SlowModel(fleet, bus, view.replicas_of(MODEL)[0].id)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_a_client_that_leaves_frees_the_rank_within_two_steps(slow: SlowModel, phase: str) -> None:
    text = "What is two plus two? " * 20 if phase == "prefill" else "Hi."
    body: dict[str, Any] = chat_body(MODEL, text, stream=True, max_tokens=200)
    async with (
        httpx.AsyncClient(timeout=60) as http,
        http.stream("POST", f"{slow.fleet.api}/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200
        await eventually(lambda: slow.is_in(phase), timeout_s=20)
        left_at = (await slow.pong()).step
    while (pong := await slow.pong()).running:
        assert pong.step - left_at <= 2, f"still running {pong.step - left_at} steps after the client left"

    async def is_empty() -> bool:
        return (await slow.bus.api(f"STREAM.INFO.{JOBS}", {}))["state"]["messages"] == 0

    await eventually(is_empty)
