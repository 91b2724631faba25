"""Which assignments count, and what failures lead to."""

import pytest

from shared.records import Assigned, AssignmentRecord, ModelRecord
from worker.agent.assignment import Assignments, needs_restart
from worker.agent.backoff import LONGEST_WAIT_S, STEADY_S, Failures


def record(epoch: int, generation: int, *models: str) -> AssignmentRecord:
    assigned = [Assigned(model=ModelRecord(id=model, source=model)) for model in models]
    return AssignmentRecord(worker="w", epoch=epoch, generation=generation, models=assigned)


def test_only_what_is_newer_counts() -> None:
    assignments = Assignments()
    assert assignments.accept(record(2, 5, "a"))
    assert not assignments.accept(record(2, 5, "b"))
    assert not assignments.accept(record(2, 4, "b"))
    assert not assignments.accept(record(1, 9, "b"))
    assert list(assignments.models) == ["a"]
    assert assignments.accept(record(3, 1))
    assert (assignments.epoch, assignments.generation, assignments.models) == (3, 1, {})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Assigned(model=ModelRecord(id="m", source="s", created_s=9.0), reason="moved"), False),
        (Assigned(model=ModelRecord(id="m", source="s", dtype="float32")), True),
        (Assigned(model=ModelRecord(id="m", source="s"), devices=["cuda:1"]), True),
    ],
)
def test_a_replica_is_restarted_for_what_matters_to_it(wanted: Assigned, expected: bool) -> None:
    assert needs_restart(Assigned(model=ModelRecord(id="m", source="s"), reason="asked"), wanted) is expected


def test_waits_double_up_to_a_minute() -> None:
    failures = Failures()
    waits = [failures.note("m", "why", 100.0) for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, LONGEST_WAIT_S]
    (failure,) = failures.all()
    assert (failure.attempts, failure.reason, failure.retry_at_s) == (8, "why", 160.0)


def test_success_clears_the_failure_and_a_steady_run_the_series() -> None:
    failures = Failures()
    failures.note("m", "why", 0.0)
    failures.ready("m")
    assert failures.all() == []
    assert failures.note("m", "again", 0.0, ran_s=1.0) == 2
    assert failures.note("m", "again", 0.0, ran_s=STEADY_S) == 1
    failures.forget("m")
    assert failures.all() == [] and failures.note("m", "why", 0.0) == 1
