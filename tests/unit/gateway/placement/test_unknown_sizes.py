"""Scenarios of models whose size nobody knows yet, and of others beside them. Each names the failure it prevents."""

from tests.support.placement import GB, Paper, paper, placed


def unknown_and_small(source: str = "org/name") -> Paper:
    """A worker of 16 GB, `a` of unknown size and `b` of 1 GB."""
    fleet = paper(("w1", 16))
    fleet.model("a", size=None, source=source)
    fleet.model("b", size=1)
    return fleet


def test_an_unknown_size_is_tried_where_most_is_free() -> None:
    """A resident reported no size, the sum of what could be evicted was zero, and nothing was ever tried."""
    fleet = paper(("w1", 4), ("w2", 12))
    fleet.model("a", size=None)
    fleet.jobs("a")
    decided = fleet.step()
    assert placed(decided) == {"w2": ["a"]}


def test_a_model_whose_size_is_being_asked_for_waits_for_the_answer() -> None:
    """It was assigned to a full worker, which refused it."""
    fleet = Paper()
    fleet.worker("w1", 8)
    fleet.model("a", size=6)
    fleet.ready("a", "w1", idle=0, running=1)
    fleet.model("b", size=None)
    fleet.jobs("b")
    fleet.unsized = {"b"}
    decided = fleet.plan()
    assert placed(decided) == {}
    assert decided.verdicts["b"].state == "planned" and "found out" in decided.reasons["b"]
    fleet.unsized = set()
    assert placed(fleet.plan()) == {"w1": ["a", "b"]}


def test_beside_a_load_of_unknown_size_nothing_is_promised() -> None:
    """It may take everything that is free: whatever is sent after it fails."""
    fleet = unknown_and_small()
    fleet.assigned("a", "w1")
    fleet.jobs("b")
    decided = fleet.plan()
    assert placed(decided) == {}
    assert decided.reasons["b"] == "how much a leaves on cpu of w1 is not known yet"
    fleet.replica("a", "w1", "loading", reserved_bytes=2 * GB)
    assert placed(fleet.plan()) == {"w1": ["a", "b"]}


def test_a_load_of_unknown_size_that_waits_after_a_failure_holds_nobody_back() -> None:
    """A mistyped repository failed once a minute, and nothing else was loaded on its worker for as long."""
    fleet = unknown_and_small()
    fleet.assigned("a", "w1", at_s=fleet.now - 90)
    fleet.load("a")
    fleet.failed("a", "w1", "there is no such repository", again=60, attempts=7)
    fleet.load("b")
    assert placed(fleet.step()) == {"w1": ["a", "b"]}


def test_a_load_of_unknown_size_that_fails_again_holds_nobody_back() -> None:
    """In the moment of each attempt, what the last attempt had come to was forgotten."""
    fleet = unknown_and_small("/models/none")
    fleet.loading("a", "w1", stage="download")
    fleet.jobs("b")
    assert placed(fleet.plan()) == {}
    fleet.failed("a", "w1", "there is no directory")
    assert placed(fleet.plan()) == {"w1": ["a", "b"]}


def test_a_download_of_unknown_size_holds_nobody_back() -> None:
    """A download takes no memory, and lasts for hours."""
    fleet = unknown_and_small("org/name")
    fleet.loading("a", "w1", stage="download")
    fleet.jobs("b")
    assert placed(fleet.plan()) == {"w1": ["a", "b"]}


def test_a_load_of_unknown_size_in_earnest_holds_others_back() -> None:
    """It had failed before; this time its weights were read, and another was sent into the memory that they took."""
    fleet = unknown_and_small("org/name")
    fleet.failed("a", "w1", "the hub cannot be reached")
    fleet.jobs("b")
    for stage in ("", "wait", "start", "read"):
        fleet.loading("a", "w1", stage=stage)
        decided = fleet.plan()
        assert placed(decided) == {} and "is not known yet" in decided.reasons["b"]
