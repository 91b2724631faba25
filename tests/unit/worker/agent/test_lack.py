"""What a failed start tells the leader, which plans by it."""

from worker.agent.backoff import Lack
from worker.agent.errors import FrontFailed, NotEnoughMemory, TooFewDevices, Underestimated
from worker.agent.keeper import _want_of_memory
from worker.models.errors import DoesNotFit


def test_want_of_memory_is_told_with_its_figures() -> None:
    assert _want_of_memory(NotEnoughMemory("cuda:0", 8, 5, 3)) == Lack("no_memory", "cuda:0", 8, 5)
    assert _want_of_memory(DoesNotFit(9, 7, {"weights": 9}, 2048)) == Lack("does_not_fit", "", 9, 7)
    lacked = Underestimated("it ran out of memory", "cpu", 500 << 20, 400 << 20)
    assert _want_of_memory(lacked) == Lack("underestimated", "cpu", 500 << 20, 400 << 20)
    assert str(lacked) == "it ran out of memory; it had 419 MB on cpu and is to have 524 MB"


def test_what_no_room_would_help_is_not_tried_again_soon() -> None:
    assert _want_of_memory(TooFewDevices(2, ["cuda:0"])) == Lack("does_not_fit", "", 0, 0)


def test_any_other_failure_is_none_of_memory() -> None:
    assert _want_of_memory(FrontFailed("the front exited with status 1")) is None
