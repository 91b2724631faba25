"""What a command that waits for a model says, with a fleet of records."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cli import operate
from gateway.cli.progress import Row
from shared.errors import BusError
from shared.records import IntentRecord, ReplicaRecord, WorkerRecord


class Paper:
    """A screen that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, rows: Iterable[Row]) -> None:
        """Nobody looks."""

    def say(self, text: str) -> None:
        self.said.append(text)


async def no_leader(*_: object, **__: object) -> bytes:
    raise BusError("nobody answers")


@pytest.mark.parametrize(
    ("replicas", "said"), [(1, []), (2, []), (3, ["m: only 2 of 3 replicas could be placed, one on each worker"])]
)
async def test_fewer_replicas_than_were_asked_for_are_said(replicas: int, said: list[str]) -> None:
    workers = {name: WorkerRecord(name=name, incarnation="i", host="h") for name in ("w1", "w2")}
    ready = {name: ReplicaRecord(id=name, model="m", worker=name, state="ready") for name in workers}
    fleet: Any = SimpleNamespace(workers=workers, replicas=ready)
    bus: Any = SimpleNamespace(request=no_leader)
    screen: Any = Paper()
    want = IntentRecord(model="m", want="loaded", replicas=replicas)
    await operate._wait_loaded(bus, fleet, want, set(), 5.0, screen)
    assert screen.said == said
