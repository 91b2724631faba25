"""A gateway with one model and a scripted replica behind it; a whole fleet with the demo model; the table."""

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.broker import EmbeddedBroker
from shared.bus import Bus
from tests.clients.report import Tell, teller
from tests.integration.conftest import broker, bus, connect  # noqa: F401  (fixtures)
from tests.support.fake_replica import FakeReplica
from tests.support.fleet_process import FleetProcess
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:  # noqa: F811
    """A gateway that knows the model."""
    await put_model(bus, context_limit=4096)
    async with running_gateway(broker) as gateway:
        yield gateway


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:  # noqa: F811
    """A replica of the model."""
    replica = await FakeReplica.start(broker, MODEL)
    yield replica
    await replica.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """A fleet that serves the demo model."""
    with FleetProcess(tmp_path_factory.mktemp("demo")) as fleet:
        yield fleet.started()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Puts this test into the table of results: ``tell(client=…, version=…, surface=…, did=…, model=…)``."""
    return teller(request)
