"""Owners, health, deliveries, the publisher: small and pure."""

import msgspec
import pytest

from shared.errors import BusUnavailable
from shared.messages import DeltaBatch, Working
from worker.front.delivery import parse
from worker.front.health import HANG_S, LOAD_SILENCE_S, Restarts, hang
from worker.front.owners import GoneOwners
from worker.front.publisher import Publisher
from worker.stamp import Reading


def test_an_owner_gets_a_grace_time() -> None:
    gone = GoneOwners(3.0)
    gone.note("a", 10.0)
    gone.note("b", 11.0)
    gone.note("a", 12.0)
    assert gone.due(12.9) == []
    assert gone.due(13.0) == [("a", True)]
    assert gone.due(14.0) == [("b", False)]  # a single 503, nothing since
    assert len(gone) == 0


@pytest.mark.parametrize(
    ("reading", "has_work", "quiet_s", "expected"),
    [
        (Reading(1, "decode", HANG_S, 0.0), True, 60.0, ""),
        (Reading(1, "decode", HANG_S + 1, 0.0), True, 60.0, "hung in decode"),
        (Reading(1, "prefill", 59.0, 3.0), True, 60.0, ""),
        (Reading(1, "prefill", 61.0, 3.0), True, 60.0, "hung in prefill"),
        (Reading(1, "idle", 1000.0, 0.0), False, 1000.0, ""),
        (Reading(1, "idle", 1000.0, 0.0), True, 1.0, ""),
        (Reading(1, "idle", 1000.0, 0.0), True, 11.0, "idle"),
        (Reading(0, "load", 100.0, 0.0), False, 100.0, ""),
        (Reading(0, "load", 0.0, 0.0), False, LOAD_SILENCE_S + 1, "silent in load"),
    ],
)
def test_a_hang_is_told_from_long_work(reading: Reading, has_work: bool, quiet_s: float, expected: str) -> None:
    reason = hang(reading, has_work=has_work, quiet_s=quiet_s)
    assert reason.startswith(expected) and bool(reason) == bool(expected)


def test_restarts_pause_longer_and_give_up() -> None:
    restarts = Restarts()
    assert [restarts.died() for _ in range(5)] == [0.0, 1.0, 2.0, 4.0, None]
    restarts.finished_job()
    assert restarts.died() == 0.0


def test_deliveries() -> None:
    assert parse("$JS.ACK.JOBS.interactive-m.3.17.20.1700000000.0").count == 3
    hub = parse("$JS.ACK.hub.acc.JOBS.interactive-m.2.17.20.1700000000.5.tok")
    assert (hub.count, hub.pending) == (2, 5)
    for wrong in ("", "reply", "$JS.ACK.JOBS.c.x.1.1.1.1", "$JS.ACK.JOBS"):
        with pytest.raises(ValueError):
            parse(wrong)


class SmallBus:
    def __init__(self, fails: bool = False) -> None:
        self.sent: list[tuple[str, bytes, str]] = []
        self.fails = fails

    def send(self, subject: str, payload: bytes, *, reply: str = "") -> None:
        if self.fails:
            raise BusUnavailable("away")
        self.sent.append((subject, payload, reply))


def test_a_batch_that_is_too_large_goes_in_parts_and_in_order() -> None:
    bus = SmallBus()
    items = [Working(f"job{number}", 1, "queued") for number in range(50)]
    Publisher(bus, "r", "w", lambda: 300).publish("plexus.gw.g.tok", [*items])
    batches = [msgspec.json.decode(payload, type=DeltaBatch) for _, payload, _ in bus.sent]
    assert len(batches) > 1 and all(len(payload) <= 300 for _, payload, _ in bus.sent)
    assert [item for batch in batches for item in batch.items] == items
    assert bus.sent[0][::2] == ("plexus.gw.g.tok", "plexus.rep.r.nr.plexus.gw.g.tok")


def test_an_outage_is_left_to_replay() -> None:
    Publisher(SmallBus(fails=True), "r", "w", lambda: 300).publish("reply", [Working("j", 1, "queued")])
