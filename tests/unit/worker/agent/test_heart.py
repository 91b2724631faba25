"""What is written into the bucket, and when."""

from types import SimpleNamespace

import msgspec
import pytest

from shared.errors import BusTimeout
from shared.records import RECORD_TTL_S, ReplicaRecord, WorkerRecord
from worker.agent import heart
from worker.agent.heart import Heart


class NotedBucket:
    """Notes what is put and deleted."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails = False

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        if self.fails:
            raise BusTimeout(key, 2.0)
        assert ttl_s == RECORD_TTL_S and msgspec.json.decode(value)["at_s"] > 0
        self.log.append(f"put {key}")
        return 1

    async def delete(self, key: str) -> None:
        self.log.append(f"delete {key}")


class Fixture:
    def __init__(self) -> None:
        self.bucket = NotedBucket()
        self.replicas: list[ReplicaRecord] = []
        self.heart = Heart(
            self.bucket,  # type: ignore[arg-type]
            lambda: WorkerRecord(name="w", incarnation="i", host="h"),
            lambda: self.replicas,
        )

    async def beat(self) -> list[str]:
        self.bucket.log.clear()
        await self.heart.beat()
        return list(self.bucket.log)


def replica(id: str, state: str = "loading") -> ReplicaRecord:
    return ReplicaRecord(id=id, model="m", worker="w", state=state)  # type: ignore[arg-type]


async def test_replicas_are_written_when_they_change_and_deleted_when_gone() -> None:
    f = Fixture()
    f.replicas = [replica("a")]
    assert await f.beat() == ["put worker.w", "put replica.a"]
    assert await f.beat() == ["put worker.w"]
    f.replicas = [replica("a", "ready"), replica("b")]
    assert await f.beat() == ["put worker.w", "put replica.a", "put replica.b"]
    f.replicas = [replica("b")]
    assert await f.beat() == ["put worker.w", "delete replica.a"]
    f.bucket.log.clear()
    await f.heart.end()
    assert f.bucket.log == ["delete replica.b", "delete worker.w"]


async def test_an_outage_is_survived() -> None:
    f = Fixture()
    f.replicas = [replica("a")]
    f.bucket.fails = True
    assert await f.beat() == []
    f.bucket.fails = False
    assert await f.beat() == ["put worker.w", "put replica.a"], "what was lost is written again at once"


async def test_a_clock_that_is_set_back_stops_no_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas expired in the bucket while they served: their memory looked free, and their models cold."""
    clock = SimpleNamespace(wall=10_000.0, tick=50.0)
    monkeypatch.setattr(heart, "time", SimpleNamespace(time=lambda: clock.wall, monotonic=lambda: clock.tick))
    f = Fixture()
    f.replicas = [replica("a")]
    await f.beat()
    clock.wall -= 3600
    clock.tick += RECORD_TTL_S - 1
    assert "put replica.a" in await f.beat()
    clock.wall += 7200
    assert await f.beat() == ["put worker.w"]  # nothing is due
