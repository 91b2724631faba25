"""A real nats-server for each test, and connections to it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from shared import topology
from shared.broker import EmbeddedBroker, Role
from shared.bus import Bus, Kind

Connect = Callable[..., Awaitable[Bus]]

_KINDS: dict[Role, Kind] = {"gateway": "gateway", "worker": "worker", "operator": "cli"}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """A running nats-server on a free port, with nothing in it."""
    async with EmbeddedBroker(tmp_path / "nats") as broker:
        yield broker


@pytest.fixture
async def connect(broker: EmbeddedBroker) -> AsyncIterator[Connect]:
    """`await connect(role, ident, kind=…)`: a Bus as that user (gateway, worker, operator), closed after the test."""
    opened: list[Bus] = []

    async def connect(role: Role = "gateway", ident: str = "one", kind: Kind | None = None) -> Bus:
        bus = await Bus.connect(broker.bus_settings(role), kind=kind or _KINDS[role], ident=ident)
        opened.append(bus)
        return bus

    yield connect
    for bus in opened:
        await bus.close()


@pytest.fixture
async def bus(connect: Connect) -> Bus:
    """A gateway's connection to a server with the stream and both buckets."""
    bus = await connect("gateway")
    await topology.ensure(bus)
    return bus
