"""What the planner says of a model, and what it would do; nothing is done."""

from gateway.placement.foresee import explain, foresee
from gateway.placement.planner import plan
from shared.messages import WhatIf
from tests.support.placement import GB, Paper


def crowded() -> Paper:
    fleet = Paper()
    fleet.worker("w1", 8)
    fleet.worker("w2", 4)
    fleet.model("a", "b", size=6)
    fleet.model("small", size=2)
    fleet.ready("a", "w1", idle=50)
    return fleet


def test_every_worker_is_explained() -> None:
    fleet = crowded()
    told = explain(fleet.view(), fleet.plan(), "b")
    assert [(one.worker, one.verdict) for one in told.candidates] == [
        ("w1", "fits when a leaves"),
        ("w2", "needs 6.44 GB on cpu of w2, which has 4.29 GB"),
    ]
    assert (told.state, told.reason) == ("cold", "nobody asked for it")
    there = explain(fleet.view(), fleet.plan(), "a")
    assert there.candidates[0].verdict == "ready"
    assert explain(fleet.view(), fleet.plan(), "small").candidates[1].verdict == "fits now: the best choice"


def test_a_model_of_nobody_is_unknown() -> None:
    fleet = crowded()
    assert explain(fleet.view(), fleet.plan(), "x").state == "unknown"


def test_a_load_is_foreseen_to_its_end() -> None:
    foreseen = foresee(crowded().view(), WhatIf("load", "b"))
    assert foreseen.steps == [
        "w1: unload if idle a (b needs the memory)",
        "after 1 s: w1: load b (what-if wants it loaded)",
    ]
    assert foreseen.states["b"].startswith("cold → ready") and foreseen.states["a"].startswith("ready → cold")


def test_what_would_wait_is_foreseen_with_its_time() -> None:
    fleet = crowded()
    fleet.replicas["a@w1"].since_s = fleet.now - 2
    fleet.replicas["a@w1"].last_used_s = fleet.now
    steps = foresee(fleet.view(), WhatIf("load", "b")).steps
    assert steps[0] == "after 3 s: w1: unload if idle a (b needs the memory)"


def test_beside_a_failing_load_of_unknown_size_there_is_room() -> None:
    """It was said to hold all of the device, of which it had 0.0 MB."""
    fleet = Paper()
    fleet.worker("w1", 16)
    fleet.model("b", size=6)
    fleet.model("lost", size=None)
    fleet.assigned("lost", "w1")
    fleet.load("lost")
    (told,) = explain(fleet.view(), fleet.plan(), "b").candidates
    assert told.verdict == "how much lost leaves on cpu of w1 is not known yet"
    fleet.failed("lost", "w1", "there is no such repository", again=60)
    (told,) = explain(fleet.view(), fleet.plan(), "b").candidates
    assert (told.verdict, told.free_bytes) == ("fits now: the best choice", 16 * GB)
    assert foresee(fleet.view(), WhatIf("load", "b")).steps == ["w1: load b (what-if wants it loaded)"]


def test_a_drain_is_foreseen() -> None:
    fleet = crowded()
    fleet.worker("w3", 8)
    fleet.load("a")
    steps = foresee(fleet.view(), WhatIf("drain", "w1")).steps
    assert steps == ["w3: load a (ann wants it loaded)", "after 1 s: w1: unload a (what-if drains w1)"]


def test_what_is_unloaded_is_foreseen_as_gone_and_its_memory_as_free() -> None:
    """It was told as draining for ever, and whoever waited for the room was not seen to get it."""
    fleet = crowded()
    fleet.jobs("b")
    assert foresee(fleet.view(), WhatIf("unload", "a")).states["b"].startswith("waiting → ready")
    told = foresee(crowded().view(), WhatIf("drain", "w1"))
    assert told.states["a"] == "ready → cold: nobody asked for it"


def test_a_loss_is_foreseen() -> None:
    fleet = crowded()
    fleet.worker("w3", 8)
    fleet.load("a")
    steps = foresee(fleet.view(), WhatIf("lose", "w1")).steps
    assert steps == ["w1: unload a (w1 is lost)", "w3: load a (ann wants it loaded)"]


def test_an_unload_is_foreseen() -> None:
    steps = foresee(crowded().view(), WhatIf("unload", "a")).steps
    assert steps == ["w1: unload a (what-if wants it unloaded)"]


def test_a_question_about_nothing_has_no_answer() -> None:
    assert foresee(crowded().view(), WhatIf("load", "x")).problem == "x is not in the catalogue"
    assert foresee(crowded().view(), WhatIf("drain", "w9")).problem == "there is no worker w9; there are w1, w2"


def test_what_is_foreseen_changes_nothing() -> None:
    fleet = crowded()
    before = plan(fleet.view(), 1)
    foresee(fleet.view(), WhatIf("load", "b"))
    assert plan(fleet.view(), 1) == before
