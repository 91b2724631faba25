"""What `plexus up` leaves in the catalogue of a fleet that was there before."""

import pytest

from gateway.cli import intents
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import IntentRecord, ModelRecord


def model(name: str, created_s: float = 1.0) -> ModelRecord:
    return ModelRecord(id=name, source=f"/models/{name}", created_s=created_s)


@pytest.fixture
async def fleet(bus: Bus) -> object:
    async with Fleet(bus) as fleet:
        yield fleet


async def test_models_of_an_earlier_up_leave_and_those_of_operators_stay(bus: Bus, fleet: Fleet) -> None:
    await intents.declare(bus, [model("old"), model("kept")], 1)
    await intents.put_model(bus, model("operators"))
    await intents.put_intent(bus, IntentRecord(model="operators", want="loaded", by="me@host"))
    await intents.declare(bus, [model("kept"), model("new")], 2)
    await fleet.wait_for(lambda fleet: set(fleet.models) == {"kept", "new", "operators"}, 5)
    await fleet.wait_for(lambda fleet: set(fleet.intents) == {"kept", "new", "operators"}, 5)
    assert fleet.intents["kept"].replicas == fleet.intents["new"].replicas == 2
    assert fleet.intents["operators"].by == "me@host"


async def test_an_entry_that_is_only_younger_is_not_written_again(bus: Bus, fleet: Fleet) -> None:
    await intents.declare(bus, [model("same", 1.0), model("moved", 1.0)], 1)
    moved = ModelRecord(id="moved", source="/elsewhere", created_s=2.0)
    await intents.declare(bus, [model("same", 2.0), moved], 1)
    await fleet.wait_for(lambda fleet: fleet.models["moved"] == moved, 5)
    assert fleet.models["same"].created_s == 1.0
