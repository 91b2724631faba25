"""Cold models that jobs wait for: the placement leader is asked until they come."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway import demand
from gateway.demand import Demand
from gateway.flight import Flight
from shared import names
from shared.bus import Bus, Msg
from shared.messages import Ensured, Job, Prompt, encode
from tests.support.eventually import eventually


async def test_a_leader_is_asked_again_as_long_as_jobs_wait(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader forgets what it was asked when another takes over, and what it placed when the worker is lost."""
    monkeypatch.setattr(demand, "REMIND_S", 0.02)
    asked: list[bytes] = []

    async def lead(message: Msg) -> None:
        asked.append(message.data)
        await bus.publish(message.reply, encode(Ensured("planned")))

    await bus.subscribe(names.PLACER_ENSURE, lead)
    job = Job(id="j", model="m", reply="r", prompt=Prompt(text="x"))
    flight = Flight(job, max_attempts=4, deadline=100.0, now=0.0)
    dispatcher: Any = SimpleNamespace(streams=SimpleNamespace(flights={"j": flight}))
    catalogue: Any = SimpleNamespace(state=lambda model: "cold")
    asking = Demand(bus, dispatcher, catalogue)
    asking.start()
    try:
        await eventually(lambda: len(asked) >= 3)
    finally:
        await asking.close()
