"""Every state machine of the fleet has at most six named states."""

from typing import get_args

import pytest

from gateway.flight import ENDED, State
from shared.records import ReplicaState, WorkerRecord


@pytest.mark.parametrize("states", [get_args(ReplicaState), get_args(State)], ids=["a replica", "a job"])
def test_there_are_six_at_most(states: tuple[str, ...]) -> None:
    assert 2 <= len(set(states)) <= 6


def test_the_ended_states_of_a_job_are_states() -> None:
    assert set(get_args(State)) > ENDED


def test_a_worker_is_ready_or_is_being_emptied() -> None:
    assert get_args(WorkerRecord.__annotations__["state"]) == ("ready", "draining")
