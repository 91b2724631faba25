"""What the leader remembers between two plans, and which changes make it plan again."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.placement.clocks import Clocks
from gateway.placement.history import AVOID_S, FORGET_ASKED_S, NEVER_S, RETURN_S, History
from gateway.placement.queues import _seconds
from gateway.placement.stir import Stir
from gateway.placement.view import View
from shared.records import (
    Assigned,
    AssignmentRecord,
    Device,
    Failure,
    FailureKind,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)
from shared.settings import EvictionSettings, PlacementSettings

GB = 1 << 30


class Records(SimpleNamespace):
    """The mirror, as far as the memory reads it."""

    def __init__(self) -> None:
        self.models = {"m": ModelRecord(id="m", source="s")}
        self.intents: dict[str, Any] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.wants: dict[str, AssignmentRecord] = {}
        self.drains: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}

    def worker(self, name: str, *failures: Failure) -> None:
        self.workers[name] = WorkerRecord(name=name, incarnation="i", host="h", failures=list(failures))

    def ready(self, **fields: Any) -> None:
        values = {"id": "r", "model": "m", "worker": "w1", "state": "ready"} | fields
        self.replicas["r"] = ReplicaRecord(**values)


def view(history: History, records: Any, now: float) -> View:
    history.observe(records, now)
    return history.view(
        records, {}, {}, now, is_settled=True, placement=PlacementSettings(), eviction=EvictionSettings()
    )


def failure(at: float, retry: float = 0.0, kind: FailureKind = "") -> Failure:
    return Failure(model="m", reason="no", at_s=at, retry_at_s=retry, kind=kind)


def test_a_failure_is_remembered_after_the_worker_forgot_it() -> None:
    """Unassigned, a worker forgets; two failing workers would hand a model to and fro for ever."""
    records, history = Records(), History()
    records.worker("w1", failure(100.0, 101.0))
    view(history, records, 100.0)
    records.worker("w1")
    assert ("w1", "m") in view(history, records, 101.0).failures
    assert not view(history, records, 103.0).failures


def test_failures_that_repeat_are_avoided_for_longer() -> None:
    """Each new assignment began at one second again, and a broken model was tried thousands of times a day."""
    records, history = Records(), History()
    pauses = []
    for number in range(8):
        at = 100.0 * number
        records.worker("w1", failure(at, at + 1.0))
        pauses.append(view(history, records, at).failures["w1", "m"].retry_at_s - at)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, AVOID_S, AVOID_S, AVOID_S]


def test_a_model_that_ran_begins_a_new_series() -> None:
    records, history = Records(), History()
    for at in (100.0, 200.0, 300.0):
        records.worker("w1", failure(at, at + 1.0))
        view(history, records, at)
    records.ready()
    assert not view(history, records, 301.0).failures
    records.replicas.clear()
    records.worker("w1", failure(400.0, 401.0))
    assert view(history, records, 400.0).failures["w1", "m"].retry_at_s == 402.0


def test_what_does_not_fit_alone_is_not_tried_again_soon() -> None:
    records, history = Records(), History()
    records.worker("w1", failure(100.0, 101.0, "does_not_fit"))
    assert view(history, records, 100.0).failures["w1", "m"].retry_at_s == 100.0 + NEVER_S


def test_a_question_that_is_not_repeated_is_forgotten() -> None:
    """Its clients left: a model that nobody waits for is not loaded in an hour, when there is room."""
    records, history = Records(), History()
    history.ask("m", 100.0)
    history.ask("m", 105.0)
    assert view(history, records, 106.0).asked == {"m": 100.0}
    assert view(history, records, 105.0 + FORGET_ASKED_S + 1).asked == {}


def test_waiting_counts_from_when_it_was_last_served() -> None:
    records, history = Records(), History()
    records.ready()
    view(history, records, 500.0)
    records.replicas.clear()
    history.ask("m", 510.0)
    assert view(history, records, 520.0).served == {"m": 500.0}
    assert view(history, records, 512.0).waiting_since("m") == 510.0


def test_what_loads_took_is_told_once_and_again_when_it_changed() -> None:
    records, history = Records(), History()
    assigned = Assigned(model=records.models["m"])
    records.wants["w1"] = AssignmentRecord(worker="w1", epoch=1, generation=1, models=[assigned])
    records.ready(reserved_bytes=2 * GB, measured_bytes=3 * GB, load_s=4.0)
    (record,) = history.measured(records, 100.0)
    assert [(one.worker, one.bytes, one.load_s) for one in record.loads] == [("w1", 3 * GB, 4.0)]
    records.measured["m"] = record
    assert history.measured(records, 101.0) == []
    records.ready(reserved_bytes=2 * GB, measured_bytes=4 * GB, load_s=4.0)
    assert history.measured(records, 102.0)[0].loads[0].bytes == 4 * GB
    other = msgspec.structs.replace(records.models["m"], quantization="int8")
    records.wants["w1"].models = [Assigned(model=other)]
    (record,) = history.measured(records, 103.0)
    assert "int8" in record.variant and len(record.loads) == 1


def test_heartbeats_do_not_make_a_plan() -> None:
    """Hundreds of records a second, each with a new time: a large fleet's leader would do nothing else."""
    stir = Stir()
    device = Device(id="cpu", kind="cpu", name="cpu", total_bytes=64 * GB, free_bytes=40 * GB)
    worker = WorkerRecord(name="w", incarnation="i", host="h", devices=[device])
    replica = ReplicaRecord(id="r", model="m", worker="w", state="ready", running=1)
    assert stir.matters("worker.w", worker) and stir.matters("replica.r", replica)
    near = msgspec.structs.replace(device, free_bytes=40 * GB + 1000)
    for number in range(3):
        assert not stir.matters("worker.w", msgspec.structs.replace(worker, at_s=float(number), devices=[near]))
        beat = msgspec.structs.replace(replica, at_s=float(number), running=2, blocks_free=number, last_used_s=9.0)
        assert not stir.matters("replica.r", beat)


@pytest.mark.parametrize(
    "change",
    [{"state": "draining"}, {"running": 0}, {"reserved_bytes": 5}, {"measured_bytes": 5}, {"devices": ["cpu"]}],
)
def test_what_a_rule_looks_at_makes_a_plan(change: dict[str, Any]) -> None:
    stir = Stir()
    replica = ReplicaRecord(id="r", model="m", worker="w", state="ready", running=1)
    stir.matters("replica.r", replica)
    assert stir.matters("replica.r", msgspec.structs.replace(replica, **change))
    assert stir.matters("replica.r", None) and not stir.matters("replica.r", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:01:40.123456789Z", 100.123456),
        ("1970-01-01T00:01:40Z", 100.0),
        ("1970-01-01T00:01:40.5Z", 100.5),
    ],
)
def test_times_of_the_server(text: str, expected: float) -> None:
    assert _seconds(text) == pytest.approx(expected)


def test_nothing_is_refused_for_good_while_a_worker_may_be_restarting() -> None:
    """The large worker was updated, and for a minute every client of its model was told that it can never fit."""
    records, history = Records(), History()
    records.worker("large")
    assert view(history, records, 100.0).is_settled
    records.workers.clear()
    assert not view(history, records, 101.0).is_settled
    assert not view(history, records, 100.0 + RETURN_S).is_settled
    assert view(history, records, 102.0 + RETURN_S).is_settled
    records.worker("large")
    assert view(history, records, 200.0).is_settled


def test_a_worker_that_was_started_anew_is_given_another_chance() -> None:
    """Its token was corrected and it was restarted; for ten minutes nobody asked it again."""
    history, records = History(), Records()
    records.worker("w1", failure(at=10.0, retry=12.0, kind="does_not_fit"))
    assert ("w1", "m") in view(history, records, 11.0).failures
    records.workers["w1"] = WorkerRecord(name="w1", incarnation="another", host="h")
    assert view(history, records, 12.0).failures == {}
    records.workers["w1"] = WorkerRecord(
        name="w1", incarnation="another", host="h", failures=[failure(at=13.0, retry=14.0)]
    )
    assert view(history, records, 13.5).failures["w1", "m"].attempts == 2  # how often it failed is not forgotten


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_the_clock_of_a_host_may_be_wrong(ahead: float) -> None:
    """An hour ahead, its models had only just begun to serve, for an hour, and nothing could displace them."""
    history, records = History(), Records()
    now = 100_000.0
    records.worker("w1", failure(at=now + ahead - 1, retry=now + ahead + 4))
    records.workers["w1"].at_s = now + ahead - 0.5
    records.ready(model="other", since_s=now + ahead - 60, last_used_s=now + ahead - 30, load_s=2.0)
    seen = view(history, records, now)
    (replica,) = seen.replicas.values()
    assert abs(seen.now - replica.since_s - 60) < 3
    assert abs(seen.now - replica.last_used_s - 30) < 3
    assert 0 < seen.failures["w1", "m"].retry_at_s - now < 10
    again = view(history, records, now + 1)
    assert again.failures["w1", "m"].attempts == 1  # the same failure


def test_the_age_of_a_record_bends_no_clock() -> None:
    history, records = History(), Records()
    records.worker("w1")
    for age in (0.0, 0.9, 4.9):
        records.workers["w1"].at_s = 1000.0 - age
        records.ready(since_s=900.0, last_used_s=0.0)
        (replica,) = view(history, records, 1000.0).replicas.values()
        assert (replica.since_s, replica.last_used_s) == (900.0, 0.0)


def test_a_clock_that_is_set_right_is_believed_again() -> None:
    clocks = Clocks()
    clocks.saw("w1", 4600.0, 1000.0)
    clocks.saw("w1", 4600.0, 1002.0)  # the same record, older
    assert clocks.ours("w1", 4600.0) == 1000.0
    clocks.saw("w1", 1003.0, 1003.5)
    assert clocks.is_right("w1") and clocks.ours("w1", 900.0) == 900.0
    clocks.saw("w1", 5000.0, 1004.0)
    clocks.keep(set())
    assert clocks.is_right("w1")
