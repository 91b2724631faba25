"""Scenarios of eviction: who gives way to whom, when, and how. Each names the failure it prevents."""

from gateway.placement.planner import Decision
from tests.support.placement import Paper, one_slot, placed


def two_slots(*models: str, **settings: float) -> Paper:
    """A worker on which any two of these models fit, and no three."""
    fleet = Paper(**settings)
    fleet.worker("w1", 8)
    fleet.model(*models, size=4)
    return fleet


def kinds(decisions: list[Decision]) -> list[tuple[str, str]]:
    return [(one.kind, one.model) for one in decisions]


# --- the eight that multi-model servers keep getting wrong -------------------------------------------------------


def test_lru_at_capacity() -> None:
    """The model used last was evicted, or whichever came first in a dictionary."""
    fleet = two_slots("a", "b", "c")
    fleet.ready("a", "w1", idle=50)
    fleet.ready("b", "w1", idle=200)
    fleet.jobs("c")
    assert placed(fleet.step()) == {"w1": ["a", "b?"]}
    fleet.obey()
    assert placed(fleet.step()) == {"w1": ["a", "c"]}


def test_the_busy_are_never_evicted() -> None:
    """An answer was cut in its middle to load another model."""
    fleet = two_slots("a", "b", "c")
    fleet.ready("a", "w1", idle=50)
    fleet.ready("b", "w1", idle=200, running=1)
    fleet.jobs("c")
    assert placed(fleet.step()) == {"w1": ["a?", "b"]}
    fleet.replicas["a@w1"].running = 1
    decided = fleet.step()
    assert placed(decided) == {"w1": ["a", "b"]}  # the request to yield is taken back
    assert ("kept", "a") in kinds(decided.decisions)
    assert decided.verdicts["c"].state == "waiting" and "a runs 1 jobs" in decided.reasons["c"]


def test_equal_demand_is_coalesced() -> None:
    """A hundred requests for one cold model started a hundred loads."""
    fleet = Paper()
    for name in ("w1", "w2", "w3"):
        fleet.worker(name)
    fleet.model("a", max_replicas=3)
    fleet.jobs("a", 100)
    fleet.asked["a"] = fleet.now
    assert placed(fleet.step()) == {"w1": ["a"]}
    assert placed(fleet.step()) == {}


def test_a_leaving_client_does_not_cancel_the_load() -> None:
    """The client gave up after 30 s, the load was thrown away at 90 %, and the next client began anew."""
    fleet = one_slot("a")
    fleet.jobs("a")
    fleet.step()
    fleet.loading("a", "w1")
    fleet.backlog.clear()
    assert fleet.step().changes == []
    assert fleet.place("a", "w1") is not None


def test_models_come_first_come_first_served() -> None:
    """The request that came last was served first, again and again."""
    fleet = one_slot("a", "b", "c")
    fleet.jobs("b", waiting=3)
    fleet.jobs("a", waiting=1)
    fleet.jobs("c", waiting=2)
    assert placed(fleet.step()) == {"w1": ["b"]}
    fleet.obey()
    fleet.backlog.pop("b")
    fleet.now += 20
    fleet.step()
    fleet.obey()
    assert placed(fleet.step()) == {"w1": ["c"]}


def test_loaded_but_not_yet_serving() -> None:
    """A model that was still warming up was taken for absent and loaded twice, or for idle and evicted."""
    fleet = one_slot("a", "b")
    fleet.loading("a", "w1", stage="warm up")
    fleet.jobs("a")
    fleet.jobs("b", waiting=30)
    decided = fleet.step()
    assert decided.changes == []
    assert "a is loading" in decided.reasons["b"]


def test_an_assigned_model_without_a_record_yet_is_not_evicted() -> None:
    """Between the assignment and the first record the place looked empty, and was given away."""
    fleet = one_slot("a", "b")
    fleet.assigned("a", "w1")
    fleet.jobs("a", waiting=20)
    fleet.jobs("b", waiting=30)
    assert fleet.step().changes == []


def test_nothing_is_routed_into_a_model_that_unloads() -> None:
    """A request arrived while its model was going, was counted as served, and hung."""
    fleet = one_slot("a")
    fleet.replica("a", "w1", "draining", running=1)
    fleet.jobs("a")
    decided = fleet.step()
    assert decided.verdicts["a"].state == "waiting"
    fleet.worker("w2", 8)
    assert placed(fleet.step()) == {"w2": ["a"]}


def test_a_model_asked_for_while_it_leaves_comes_back() -> None:
    """An evicted model that was wanted again at that moment stayed in limbo for five hours."""
    fleet = one_slot("a")
    fleet.ready("a", "w1", place={"unload_if_idle": True, "room_for": "b"})
    fleet.replicas["a@w1"].state = "draining"
    fleet.jobs("a")
    fleet.step()
    del fleet.replicas["a@w1"]
    assert placed(fleet.step()) == {"w1": ["a"]}


def test_two_waiters_cause_one_eviction() -> None:
    """Each of two requests for models that fit together evicted one of its own."""
    fleet = Paper()
    fleet.worker("w1", 16)
    fleet.model("old", "older", size=8)
    fleet.model("a", "b", size=4)
    fleet.ready("old", "w1", idle=100)
    fleet.ready("older", "w1", idle=200)
    fleet.jobs("a", waiting=2)
    fleet.jobs("b", waiting=1)
    decided = fleet.step()
    assert placed(decided) == {"w1": ["old", "older?"]}
    assert fleet.step().decisions == []
    fleet.obey()
    assert placed(fleet.step()) == {"w1": ["a", "b", "old"]}


# --- whom ------------------------------------------------------------------------------------------------------


def test_what_fits_now_evicts_nobody() -> None:
    """A model was evicted although another worker stood empty."""
    fleet = one_slot("a", "b")
    fleet.worker("w2", 8)
    fleet.ready("a", "w1", idle=900)
    fleet.jobs("b")
    assert placed(fleet.step()) == {"w2": ["b"]}


def test_strategy_priority_evicts_the_lowest_priority() -> None:
    """`strategy = "priority"` was read from the file and never looked at again."""
    fleet = Paper(strategy="priority")
    fleet.worker("w1", 8)
    fleet.model("a", priority=1)
    fleet.model("b", priority=5)
    fleet.model("c")
    fleet.ready("a", "w1", idle=20)
    fleet.ready("b", "w1", idle=800)
    fleet.jobs("c")
    assert placed(fleet.step()) == {"w1": ["a?", "b"]}


def test_strategy_lru_does_not_look_at_priority() -> None:
    """The two strategies were the same one."""
    fleet = two_slots("c")
    fleet.model("a", priority=1)
    fleet.model("b", priority=5)
    fleet.ready("a", "w1", idle=20)
    fleet.ready("b", "w1", idle=800)
    fleet.jobs("c")
    assert placed(fleet.step()) == {"w1": ["a", "b?"]}


def test_among_equal_priorities_the_one_used_longest_ago_goes() -> None:
    """Equal priorities fell back to the order of names."""
    fleet = Paper(strategy="priority")
    fleet.worker("w1", 8)
    fleet.model("a", "b", "c")
    fleet.ready("a", "w1", idle=20)
    fleet.ready("b", "w1", idle=800)
    fleet.jobs("c")
    assert placed(fleet.step()) == {"w1": ["a", "b?"]}


def test_a_model_pinned_by_an_operators_intent_stays() -> None:
    """Even before a higher class."""
    fleet = Paper()
    fleet.worker("w1", 8)
    fleet.model("a", size=6)
    fleet.model("b", size=6, residency=5)
    fleet.ready("a", "w1")
    fleet.load("a")
    fleet.jobs("b", waiting=100)
    assert placed(fleet.plan()) == {"w1": ["a?"]}
    fleet.intents["a"].pinned = True
    decided = fleet.plan()
    assert placed(decided) == {}
    assert "a is pinned" in decided.reasons["b"]


def test_the_pinned_stay() -> None:
    """A pin was a preference."""
    fleet = one_slot("b")
    fleet.model("a", size=6, pinned=True)
    fleet.ready("a", "w1", idle=900)
    fleet.jobs("b", waiting=500)
    decided = fleet.step()
    assert decided.changes == [] and decided.verdicts["b"].state == "waiting"
    assert "a is pinned" in decided.reasons["b"]


def test_a_lower_class_does_not_displace_a_higher() -> None:
    """A helper model threw out the one that everybody works with."""
    fleet = one_slot("b")
    fleet.model("a", size=6, residency=2)
    fleet.ready("a", "w1", idle=900)
    fleet.jobs("b", waiting=500)
    assert fleet.step().changes == []


def test_equals_displace_each_other_in_both_directions() -> None:
    """A text model vanished for an image and could not come back: the comparison was strict, so swaps went one way."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1")
    fleet.jobs("b")
    assert placed(fleet.step()) == {"w1": ["a?"]}
    other = one_slot("a", "b")
    other.ready("b", "w1")
    other.jobs("a")
    assert placed(other.step()) == {"w1": ["b?"]}


def test_a_higher_class_displaces_a_lower() -> None:
    """Class decided nothing."""
    fleet = one_slot("a")
    fleet.model("b", size=6, residency=1)
    fleet.ready("a", "w1")
    fleet.jobs("b")
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_what_an_operator_wants_is_not_displaced_by_demand() -> None:
    """It would be loaded again at once, and the two would chase each other for ever."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", idle=900)
    fleet.load("a")
    fleet.jobs("b", waiting=500)
    decided = fleet.step()
    assert decided.changes == [] and "a is wanted loaded" in decided.reasons["b"]


def test_what_an_operator_wants_gives_way_to_a_higher_class() -> None:
    """An intent for a small model blocked the flagship."""
    fleet = one_slot("a")
    fleet.model("b", size=6, residency=1)
    fleet.ready("a", "w1")
    fleet.load("a")
    fleet.jobs("b")
    assert placed(fleet.step()) == {"w1": ["a?"]}
    fleet.obey()
    assert placed(fleet.step()) == {"w1": ["b"]}
    fleet.obey()
    fleet.backlog.clear()
    fleet.now += 100
    assert fleet.step().changes == []  # and does not come back at its cost


def test_a_replica_above_the_wanted_number_may_be_displaced() -> None:
    """One intent protected every copy."""
    fleet = one_slot("a", "b")
    fleet.worker("w2", 8)
    fleet.models["a"].max_replicas = 2
    fleet.ready("a", "w1", idle=40)
    fleet.ready("a", "w2", idle=30)
    fleet.load("a")
    fleet.jobs("b")
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_the_fewest_are_displaced() -> None:
    """The two oldest were evicted where the third alone would have done."""
    fleet = Paper()
    fleet.worker("w1", 12)
    fleet.model("small", size=2)
    fleet.model("large", size=8)
    fleet.model("new", size=9)
    fleet.ready("small", "w1", idle=900)
    fleet.ready("large", "w1", idle=100)
    fleet.jobs("new")
    assert placed(fleet.step()) == {"w1": ["large?", "small"]}


def test_across_workers_the_least_used_goes() -> None:
    """The model in use was displaced because its worker came first in the alphabet."""
    fleet = one_slot("a", "b", "c")
    fleet.worker("w2", 8)
    fleet.ready("a", "w1", idle=20)
    fleet.ready("b", "w2", idle=700)
    fleet.jobs("c")
    assert placed(fleet.step()) == {"w2": ["b?"]}


def test_whoever_was_asked_to_yield_is_not_joined_by_a_second() -> None:
    """The order of use changed between two looks, and another model was asked as well."""
    fleet = two_slots("a", "b", "c")
    fleet.ready("a", "w1", idle=50)
    fleet.ready("b", "w1", idle=200)
    fleet.jobs("c")
    fleet.step()
    fleet.replicas["b@w1"].last_used_s = fleet.now - 10
    assert fleet.step().decisions == []


def test_a_model_that_only_fails_holds_nothing_against_others() -> None:
    """A broken checkpoint kept its memory reserved, between two attempts, for hours."""
    fleet = one_slot("a", "b")
    fleet.assigned("a", "w1")
    fleet.failed("a", "w1", "bad weights", again=60)
    fleet.load("a", ago=100)
    fleet.intents.clear()
    fleet.jobs("b")
    decided = fleet.step()
    assert kinds(decided.decisions)[0] == ("unloaded", "a")
    assert placed(fleet.step()) == {"w1": ["b"]}


def test_what_fails_evicts_nobody() -> None:
    """A broken model went from worker to worker and unloaded something that worked on each."""
    fleet = one_slot("a", "b")
    fleet.worker("w2", 8)
    fleet.ready("b", "w2")
    fleet.model("c", size=1)
    fleet.failed("a", "w1", "bad weights", again=60)
    fleet.jobs("a")
    fleet.ready("c", "w1", running=1)
    fleet.models["c"].pinned = True
    fleet.model("c", size=7, pinned=True)
    fleet.ready("c", "w1", running=1)
    decided = fleet.step()
    assert decided.changes == [] and "bad weights" in decided.reasons["a"]


# --- when ------------------------------------------------------------------------------------------------------


def test_a_fresh_model_serves_before_it_may_be_displaced() -> None:
    """Alternating demand: two models spent all of their time loading."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", age=3, idle=1, load_s=1.0)
    fleet.jobs("b")
    decided = fleet.step()
    assert decided.changes == [] and "serves for 2.0 s of at least 5.0 s" in decided.reasons["b"]
    assert decided.wake_at_s == fleet.now + 3.0
    fleet.now += 3.0
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_a_model_serves_for_at_least_as_long_as_it_loaded() -> None:
    """A load of 40 s for 5 s of service."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", age=60, idle=1, load_s=40.0)
    fleet.jobs("b")
    assert fleet.step().changes == []
    fleet.now += 20.0
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_what_starves_displaces_the_busy() -> None:
    """A model under steady load was never idle, and the other waited for ever."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", running=2)
    fleet.jobs("a", 5)
    fleet.jobs("b", waiting=59)
    assert fleet.step().changes == []
    assert fleet.step().wake_at_s == fleet.now + 1
    fleet.now += 1
    decided = fleet.step()
    assert placed(decided) == {"w1": []}  # it takes no more jobs, finishes and goes
    assert decided.decisions[0].reason == "it finishes and goes: jobs have waited 60 s for b"


def test_what_starves_still_waits_for_the_fresh() -> None:
    """Everything starves in an overload: without a minimum, models displaced each other before they served one job."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", age=3, idle=0, load_s=1.0, running=2)
    fleet.jobs("b", waiting=500)
    assert fleet.step().changes == []


def test_what_was_displaced_does_not_starve_at_once() -> None:
    """Its queue is old: by the age of its first job it would displace the next one the moment that it is displaced."""
    fleet = one_slot("a", "b")
    fleet.ready("b", "w1", running=1, age=30, idle=0)
    fleet.jobs("a", 50, waiting=400)
    fleet.served["a"] = fleet.now - 40
    assert fleet.step().changes == []
    fleet.now += 20
    assert placed(fleet.step()) == {"w1": []}


def test_those_that_starve_come_first() -> None:
    """A higher class under steady demand kept everybody else out."""
    fleet = one_slot("a")
    fleet.model("b", size=6, residency=3)
    fleet.jobs("a", waiting=70)
    fleet.jobs("b", waiting=10)
    assert placed(fleet.step()) == {"w1": ["a"]}


def test_the_higher_class_comes_first() -> None:
    """Class was looked at when evicting, but not when two waited for one place."""
    fleet = one_slot("a")
    fleet.model("b", size=6, residency=3)
    fleet.jobs("a", waiting=20)
    fleet.jobs("b", waiting=10)
    assert placed(fleet.step()) == {"w1": ["b"]}


def test_the_room_goes_to_the_one_for_whom_it_was_made() -> None:
    """Room was made for one, another took it, and a second eviction followed."""
    fleet = one_slot("a", "b", "old")
    fleet.ready("old", "w1")
    fleet.jobs("a", waiting=1)
    fleet.step()
    fleet.jobs("b", waiting=2)  # it was there before, and is heard of only now
    fleet.obey()
    assert placed(fleet.step()) == {"w1": ["a"]}


def test_jobs_that_wait_for_a_resident_keep_it() -> None:
    """It was idle for the moment between two jobs of a long queue, and was evicted with the queue before it."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", idle=0)
    fleet.jobs("a", 12)
    fleet.jobs("b", waiting=9)
    decided = fleet.step()
    assert decided.changes == [] and "12 jobs wait for a" in decided.reasons["b"]


def test_jobs_that_were_taken_and_not_yet_begun_are_work() -> None:
    """Nothing ran, three waited inside the replica, and it was unloaded."""
    fleet = one_slot("a", "b")
    fleet.ready("a", "w1", waiting=3)
    fleet.jobs("b", waiting=9)
    assert fleet.step().changes == []


def test_constant_demand_that_is_met_changes_nothing() -> None:
    """Models moved to and fro between workers although everybody was served."""
    fleet = two_slots("a", "b", "c", "d")
    fleet.worker("w2", 8)
    for model, worker in (("a", "w1"), ("b", "w1"), ("c", "w2"), ("d", "w2")):
        fleet.ready(model, worker, running=1)
    for _ in range(20):
        fleet.now += 7
        assert fleet.step().changes == []
