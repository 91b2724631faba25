"""What a client that waits is told: how its job stands, for how long, and why."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.catalogue import Catalogue
from gateway.flight import Flight
from gateway.request import Waiting
from gateway.waiting import MAX_MODELS, MAX_REASON, Waits, headers
from shared.fleet import Fleet
from shared.messages import Ensured, Job, Prompt
from shared.records import MeasuredRecord, Measurement, ReplicaRecord


def waits(*replicas: ReplicaRecord, word: Ensured | None = None, **measured: float) -> Waits:
    """Of a fleet with these replicas, whose leader says `word`."""
    loads = {
        model: MeasuredRecord(model=model, variant="", loads=[Measurement(worker="w", bytes=1, load_s=seconds)])
        for model, seconds in measured.items()
    }
    fleet = SimpleNamespace(measured=loads, replicas_of=lambda model: [one for one in replicas if one.model == model])
    return Waits(Catalogue(cast(Fleet, fleet), wall=lambda: 105.0), lambda model: word)


def replica(state: Any, **fields: Any) -> ReplicaRecord:
    return ReplicaRecord(**({"id": "r", "model": "m", "worker": "w1", "state": state, "since_s": 100.0} | fields))


def flight(ahead: int | None = None) -> Flight:
    job = Job(id="j", model="m", reply="r", prompt=Prompt(text="x"))
    made = Flight(job, max_attempts=4, deadline=100.0, now=0.0)
    made.ahead = ahead
    return made


def test_a_load_tells_where_what_and_how_much() -> None:
    loading = replica("loading", stage="read", done_bytes=43, total_bytes=100)
    told = waits(loading, word=Ensured("planned", "on w1"), m=12.0).of(flight(2))
    assert told == Waiting("loading", 2, 7.0, "loading on w1: read 43 %")
    waiting = replica("loading", stage="wait", reason="needs 2 GB, 1 GB is free")
    assert waits(waiting).of(flight()).reason == "loading on w1: wait (needs 2 GB, 1 GB is free)"


def test_of_several_loads_the_first_is_told() -> None:
    later = replica("loading", id="b", worker="w2", since_s=104.0)
    assert waits(later, replica("loading", stage="start")).of(flight()).reason == "loading on w1: start"


def test_without_a_load_the_leaders_reason_is_told_in_one_line() -> None:
    word = Ensured("waiting", "waits for other\r\nto leave\tw1")
    assert waits(word=word).of(flight()) == Waiting("cold", None, None, "waits for other to leave w1")
    assert waits().of(flight()).reason == ""
    long = waits(word=Ensured("waiting", "x" * 5000)).of(flight())
    assert len(long.reason) == MAX_REASON


def test_beside_a_full_replica_place_and_turn_are_told() -> None:
    busy = replica("ready", slots=4, running=4)
    told = waits(busy)
    done = flight()
    done.state, done.accepted, done.ended = "done", 1.0, 9.0
    assert told.of(flight(3)) == Waiting("queued", 3, None, "4 jobs are before it on w1")
    told.ended(done)
    assert told.of(flight(3)).estimate_s == pytest.approx(8.0)  # four turns, at four jobs in eight seconds
    told.ended(flight())  # it never ran, and says nothing
    assert told.of(flight(3)).estimate_s == pytest.approx(8.0)
    assert waits(replica("ready", slots=4, running=1)).of(flight(0)).reason == ""


def test_what_is_learnt_is_bounded() -> None:
    told = waits()
    for number in range(MAX_MODELS + 5):
        done = flight()
        done.model, done.state, done.accepted, done.ended = f"m{number}", "done", 1.0, 2.0
        told.ended(done)
    assert len(told._run_s) == MAX_MODELS


def test_a_reason_in_a_header_is_plain_ascii() -> None:
    found = dict(headers([Waiting("cold", 0, 3.7, "wartet auf größe → w1")]))
    assert found == {
        b"x-plexus-state": b"cold",
        b"x-plexus-position": b"1",
        b"x-plexus-estimate": b"3",
        b"x-plexus-reason": b"wartet auf gr??e ? w1",
    }
