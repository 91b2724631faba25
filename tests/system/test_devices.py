"""A model over several devices of a worker, from HTTP to its ranks and back."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from shared import names
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.process import is_running
from shared.records import AssignmentRecord, ModelRecord, ReplicaRecord
from tests.support.eventually import eventually
from tests.support.separate_fleet import SeparateFleet, models_toml, until

WHOLE, DIVIDED, ODD = "test/whole", "test/divided", "test/odd"
MEMORY = 4 << 30
LONG = 200  # tokens: long enough to be interrupted
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def entries(tiny: Path) -> str:
    options: dict[str, Any] = {"source": str(tiny), "dtype": "float32", "max_slots": 4}
    return models_toml(
        [
            ModelRecord(id=WHOLE, **options),
            ModelRecord(id=DIVIDED, devices=2, **options),
            ModelRecord(id=ODD, devices=3, **options),
        ]
    )


def ask(url: str, model: str, max_tokens: int) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": max_tokens}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=100.0)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def ready(fleet: Fleet, model: str) -> ReplicaRecord | None:
    return next((one for one in fleet.replicas_of(model) if one.state == "ready"), None)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_over_two_devices_answers_as_over_one_and_outlives_its_ranks(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(entries(tiny))
    with SeparateFleet(tmp_path / "fleet") as separate:
        gateway = separate.gateway(models=str(file))
        worker = separate.worker("w1", MEMORY, cpu_devices=3, cores=2)
        gateway.started()
        worker.started()
        asyncio.run(tell(separate, gateway.url, worker.process.pid))


async def tell(separate: SeparateFleet, url: str, agent: int) -> None:
    async def hear(model: str, max_tokens: int = 24) -> str:
        return text(await asyncio.to_thread(ask, url, model, max_tokens))

    bus = await separate.operator()
    async with bus, Fleet(bus) as fleet:
        # 1. The same text; and what was promised is what is held, on two devices and no other.
        assert await hear(DIVIDED) == await hear(WHOLE)
        replica = await until(fleet, lambda now: ready(now, DIVIDED))
        assert replica is not None
        assert (len(replica.devices), len(replica.pids)) == (2, 3)
        assert 0 < replica.measured_bytes <= replica.reserved_bytes == replica.estimated_bytes
        promised = await Bucket(bus, names.PLAN).get(names.want_key("w1"))
        assert promised is not None
        places = msgspec.json.decode(promised[0], type=AssignmentRecord).models
        (place,) = [one for one in places if one.model.id == DIVIDED]
        assert (place.devices, place.memory_bytes) == (replica.devices, replica.reserved_bytes)
        await until(fleet, _books_agree)
        # 2. What cannot be divided so is refused, with the numbers and the remedy.
        await asyncio.to_thread(separate.operate, "load", ODD)
        reasons = await until(fleet, lambda now: _reasons(now, ODD))
        assert "num_attention_heads 4" in reasons[0] and "set `devices`" in reasons[0]
        # 3. A follower that dies in the middle of an answer takes its group along; the answer goes on.
        long = asyncio.create_task(hear(DIVIDED, LONG))
        await until(fleet, lambda now: (one := ready(now, DIVIDED)) is not None and one.running)
        os.kill(replica.pids[2], signal.SIGKILL)
        assert await long == await hear(WHOLE, LONG)
        again = await until(fleet, lambda now: ready(now, DIVIDED))
        assert again is not None and again.pids[0] == replica.pids[0]
        assert not any(map(is_running, replica.pids[1:]))
        # 4. Nothing is left of it when its agent is killed.
        os.kill(agent, signal.SIGKILL)
        await eventually(lambda: not any(map(is_running, again.pids)), 10.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_left_of_ranks_that_hang_or_are_killed(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(entries(tiny))
    with SeparateFleet(tmp_path / "fleet") as separate:
        gateway = separate.gateway(models=str(file))
        worker = separate.worker("w1", MEMORY, cpu_devices=2, cores=2)
        gateway.started()
        worker.started()
        asyncio.run(tell_of_ends(separate, gateway.url))


async def tell_of_ends(separate: SeparateFleet, url: str) -> None:
    async def hear() -> str:
        return text(await asyncio.to_thread(ask, url, DIVIDED, LONG))

    bus = await separate.operator()
    async with bus, Fleet(bus) as fleet:
        expected = await hear()
        # 1. A follower that hangs, and 2. a first rank that is killed, in the middle of an answer.
        for victim, signum in ((2, signal.SIGSTOP), (1, signal.SIGKILL)):
            before = await until(fleet, lambda now: ready(now, DIVIDED))
            assert before is not None
            answer = asyncio.create_task(hear())
            await until(fleet, lambda now: (one := ready(now, DIVIDED)) is not None and one.running)
            os.kill(before.pids[victim], signum)
            assert await answer == expected
            await eventually(lambda pids=before.pids[1:]: not any(map(is_running, pids)), 10.0)
        # 3. A front that is killed.
        last = await until(fleet, lambda now: ready(now, DIVIDED))
        assert last is not None
        os.kill(last.pids[0], signal.SIGKILL)
        await eventually(lambda: not any(map(is_running, last.pids)), 10.0)


def _reasons(fleet: Fleet, model: str) -> list[str]:
    return [one.reason for worker in fleet.workers.values() for one in worker.failures if one.model == model]


def _books_agree(fleet: Fleet) -> bool:
    """What each device has promised is what its replicas hold on it."""
    (worker,) = fleet.workers.values()
    return all(
        device.reserved_bytes == sum(one.reserved_bytes for one in fleet.replicas.values() if device.id in one.devices)
        for device in worker.devices
    )
