"""Places and wishes: who is assigned what, whatever it weighs. Each test names what would go wrong otherwise."""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from gateway.placement.foresee import explain
from gateway.placement.planner import Plan, View, plan
from gateway.placement.view import Size
from shared.records import (
    Assigned,
    AssignmentRecord,
    Device,
    Failure,
    IntentRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)
from tests.support.placement import Paper, placed

GB = 1 << 30


def a_worker(name: str, free: int = 8 * GB, state: Literal["ready", "draining"] = "ready") -> WorkerRecord:
    device = Device(id="cpu", kind="cpu", name="cpu", total_bytes=16 * GB, free_bytes=free)
    return WorkerRecord(name=name, incarnation="i", host="h", state=state, devices=[device])


def a_model(name: str, **fields: Any) -> ModelRecord:
    return ModelRecord(id=name, source="s", **fields)


def loaded(model: str, *on: str, replicas: int = 1, at_s: float = 0.0) -> IntentRecord:
    return IntentRecord(model=model, want="loaded", on=list(on), replicas=replicas, by="ann", at_s=at_s)


def unloaded(model: str) -> IntentRecord:
    return IntentRecord(model=model, want="unloaded", by="ann")


def want(worker: str, *models: str, generation: int = 3) -> AssignmentRecord:
    assigned = [Assigned(model=a_model(model), reason="before") for model in models]
    return AssignmentRecord(worker=worker, epoch=1, generation=generation, models=assigned)


def view(
    models: Iterable[str] = (),
    intents: Iterable[IntentRecord] = (),
    workers: Iterable[WorkerRecord] = (),
    wants: Iterable[AssignmentRecord] = (),
    replicas: Iterable[ReplicaRecord] = (),
    demand: Iterable[str] = (),
    avoid: Iterable[tuple[str, str]] = (),
    **more: Any,
) -> View:
    failures = {(at, model): Failure(model=model, reason="no", at_s=0.0, retry_at_s=9.0) for at, model in avoid}
    return View(
        asked=dict.fromkeys(demand, 0.0),
        failures=failures,
        models={model: a_model(model) for model in models},
        intents={intent.model: intent for intent in intents},
        workers={worker.name: worker for worker in workers},
        wants={one.worker: one for one in wants},
        replicas={one.id: one for one in replicas},
        **more,
    )


def assigned(decided: Plan) -> dict[str, list[str]]:
    return {record.worker: [one.model.id for one in record.models] for record in decided.changes}


def test_a_wanted_model_goes_to_the_worker_with_fewest_models() -> None:
    decided = plan(
        view(["a", "b"], [loaded("a"), loaded("b")], [a_worker("w1"), a_worker("w2")], [want("w1", "a")]), epoch=7
    )
    assert assigned(decided) == {"w2": ["b"]}
    record = decided.changes[0]
    assert (record.epoch, record.generation) == (7, 1)
    assert record.models[0].reason == "ann wants it loaded"
    assert decided.reasons == {"a": "on w1", "b": "on w2"}


def test_among_equals_the_most_free_memory_wins() -> None:
    decided = plan(view(["a"], [loaded("a")], [a_worker("w1", GB), a_worker("w2", 2 * GB)]), epoch=1)
    assert assigned(decided) == {"w2": ["a"]}


def test_a_worker_without_free_memory_gets_nothing() -> None:
    decided = plan(view(["a"], [loaded("a")], [a_worker("w1", 0)]), epoch=1)
    assert decided.changes == []
    assert decided.reasons["a"] == "needs an unknown amount on cpu of w1, where 0.00 GB is free"


def test_nothing_changes_where_everything_is_as_wanted() -> None:
    crowded = view(["a", "b"], [loaded("a"), loaded("b")], [a_worker("w1", 0), a_worker("w2")], [want("w1", "a", "b")])
    assert plan(crowded, epoch=9).changes == []


def test_a_worker_that_joins_moves_nothing() -> None:
    before = view(["a", "b"], [loaded("a"), loaded("b")], [a_worker("w1")], [want("w1", "a", "b")])
    after = view(["a", "b"], [loaded("a"), loaded("b")], [a_worker("w1"), a_worker("w2")], [want("w1", "a", "b")])
    assert plan(before, epoch=1).changes == plan(after, epoch=1).changes == []


def test_replicas_spread_over_workers() -> None:
    decided = plan(view(["a"], [loaded("a", replicas=2)], [a_worker(f"w{n}") for n in (1, 2, 3)]), epoch=1)
    assert assigned(decided) == {"w1": ["a"], "w2": ["a"]}


def test_more_replicas_than_workers_place_what_can_be() -> None:
    decided = plan(view(["a"], [loaded("a", replicas=5)], [a_worker("w1")]), epoch=1)
    assert assigned(decided) == {"w1": ["a"]}
    why = "no further worker can take it (1 of 5 placed): it is on w1 already, and a worker runs one replica of a model"
    assert decided.reasons["a"] == f"on w1; {why}"


def test_fewer_replicas_keep_the_ready_one() -> None:
    ready = ReplicaRecord(id="r", model="a", worker="w1", state="ready")
    loading = ReplicaRecord(id="s", model="a", worker="w2", state="loading")
    decided = plan(
        view(
            ["a"],
            [loaded("a")],
            [a_worker("w1"), a_worker("w2")],
            [want("w1", "a"), want("w2", "a")],
            [ready, loading],
        ),
        epoch=2,
    )
    assert assigned(decided) == {"w2": []}
    assert decided.changes[0].generation == 4


def test_a_model_stays_on_the_workers_that_were_named() -> None:
    workers = [a_worker("w1"), a_worker("w2")]
    assert assigned(plan(view(["a"], [loaded("a", "w2")], workers), epoch=1)) == {"w2": ["a"]}
    moved = plan(view(["a"], [loaded("a", "w2")], workers, [want("w1", "a")]), epoch=1)
    assert assigned(moved) == {"w2": ["a"]}  # and leaves w1 once it is ready there


def test_a_named_worker_that_is_not_there_is_waited_for() -> None:
    decided = plan(view(["a"], [loaded("a", "w9")], [a_worker("w1")]), epoch=1)
    assert decided.changes == []
    assert decided.reasons["a"] == "none of the workers it may run on is there: w9"


def test_a_lost_worker_gives_its_models_to_others() -> None:
    decided = plan(view(["a"], [loaded("a")], [a_worker("w2")], [want("w1", "a")], lost=["w1"]), epoch=1)
    assert assigned(decided) == {"w1": [], "w2": ["a"]}


def test_a_worker_that_is_only_not_there_yet_keeps_its_models() -> None:
    decided = plan(view(["a"], [loaded("a")], [a_worker("w2")], [want("w1", "a")]), epoch=1)
    assert decided.changes == []


def test_without_any_worker_nothing_is_written() -> None:
    decided = plan(view(["a"], [loaded("a")]), epoch=1)
    assert decided.changes == []
    assert decided.reasons["a"] == "there are no workers"


def test_a_draining_worker_keeps_what_it_has_and_is_replaced() -> None:
    workers = [a_worker("w1", state="draining"), a_worker("w2")]
    sizes = dict.fromkeys(["a", "b"], Size(minimum_bytes=GB, wanted_bytes=GB))
    both = view(["a", "b"], [loaded("a"), loaded("b")], workers, [want("w1", "a")], sizes=sizes)
    assert assigned(plan(both, epoch=1)) == {"w2": ["a", "b"]}


def test_a_draining_worker_alone_gets_nothing() -> None:
    decided = plan(view(["a"], [loaded("a")], [a_worker("w1", state="draining")]), epoch=1)
    assert decided.changes == []


def test_a_failed_load_moves_where_another_worker_can() -> None:
    workers = [a_worker("w1"), a_worker("w2")]
    decided = plan(view(["a"], [loaded("a")], workers, [want("w1", "a")], avoid=[("w1", "a")]), epoch=1)
    assert assigned(decided) == {"w1": [], "w2": ["a"]}


def test_a_failed_load_stays_where_no_other_worker_can() -> None:
    alone = view(["a"], [loaded("a")], [a_worker("w1")], [want("w1", "a")], avoid=[("w1", "a")])
    assert plan(alone, epoch=1).changes == []


def test_two_workers_that_both_failed_do_not_swap() -> None:
    both = view(
        ["a"],
        [loaded("a")],
        [a_worker("w1"), a_worker("w2")],
        [want("w2", "a")],
        avoid=[("w1", "a"), ("w2", "a")],
    )
    assert plan(both, epoch=1).changes == []


def test_a_model_that_failed_everywhere_is_still_placed() -> None:
    decided = plan(view(["a"], [loaded("a")], [a_worker("w1")], avoid=[("w1", "a")]), epoch=1)
    assert assigned(decided) == {"w1": ["a"]}


def test_an_unwanted_model_is_taken_away() -> None:
    decided = plan(view(["a"], [unloaded("a")], [a_worker("w1")], [want("w1", "a")], demand=["a"]), epoch=1)
    assert assigned(decided) == {"w1": []}
    assert decided.reasons["a"] == "ann wants it unloaded"


def test_a_model_that_left_the_catalogue_is_taken_away() -> None:
    decided = plan(view([], [loaded("a")], [a_worker("w1")], [want("w1", "a")]), epoch=1)
    assert assigned(decided) == {"w1": []}


def test_a_model_that_nobody_asked_for_is_not_loaded() -> None:
    assert plan(view(["a"], [], [a_worker("w1")]), epoch=1).changes == []


def test_jobs_that_wait_load_a_model_and_it_stays() -> None:
    decided = plan(view(["a"], [], [a_worker("w1")], demand=["a"]), epoch=1)
    assert assigned(decided) == {"w1": ["a"]}
    assert decided.changes[0].models[0].reason == "jobs wait for it"
    assert plan(view(["a"], [], [a_worker("w1")], [want("w1", "a")]), epoch=1).changes == []


def test_a_changed_model_is_assigned_anew_where_it_is() -> None:
    changed = view(["a"], [loaded("a")], [a_worker("w1"), a_worker("w2")], [want("w1", "a")])
    changed = View(**{**changed.__dict__, "models": {"a": a_model("a", context_limit=64)}})
    decided = plan(changed, epoch=1)
    assert assigned(decided) == {"w1": ["a"]}
    assert decided.changes[0].models[0].model.context_limit == 64


def test_a_new_leader_alone_is_no_reason_to_write() -> None:
    assert plan(view(["a"], [loaded("a")], [a_worker("w1")], [want("w1", "a")]), epoch=99).changes == []


def test_a_worker_is_not_told_what_it_takes_for_the_past() -> None:
    """The bucket was lost: the assignment begins anew, above the generation that the worker has followed."""
    worker = msgspec.structs.replace(a_worker("w1"), epoch=1, generation=7)
    (change,) = plan(view(["a"], [loaded("a")], [worker]), epoch=1).changes
    assert (change.epoch, change.generation) == (1, 8)


def test_the_older_wish_is_served_first() -> None:
    intents = [loaded("a", at_s=2.0), loaded("b", at_s=1.0)]
    decided = plan(view(["a", "b"], intents, [a_worker("w1", 2 * GB), a_worker("w2", GB)]), epoch=1)
    assert assigned(decided) == {"w1": ["b"], "w2": ["a"]}


def test_the_same_view_gives_the_same_plan() -> None:
    same = view(["a", "b"], [loaded("a", replicas=2), loaded("b")], [a_worker(f"w{n}") for n in range(5)])
    assert plan(same, epoch=1) == plan(same, epoch=1)


# --- mirrors ---------------------------------------------------------------------------------------------------


def test_a_model_of_a_mirror_goes_where_the_mirror_is_known() -> None:
    """It was assigned where most memory was free, failed there for want of the mirror, and backed off."""
    fleet = Paper()
    fleet.worker("w1", 64)
    fleet.worker("w2", 8, mirrors=("lab",))
    fleet.worker("w3", 64, mirrors=("attic",))
    fleet.model("a", source="lab:org/a")
    fleet.model("b", options={"draft": "lab:org/small"})
    fleet.jobs("a")
    fleet.jobs("b")
    assert placed(fleet.plan()) == {"w2": ["a", "b"]}


def test_a_mirror_that_no_worker_knows_is_told_at_once() -> None:
    """Jobs waited for ever for a model that nobody could fetch."""
    fleet = Paper()
    fleet.worker("w1", mirrors=("attic",))
    fleet.worker("w2")
    fleet.model("a", source="lab:org/a")
    fleet.jobs("a")
    decided = fleet.plan()
    assert decided.changes == []
    assert decided.verdicts["a"].state == "cannot_fit"
    assert decided.reasons["a"] == "no worker knows the mirror 'lab' of its source"
    told = explain(fleet.view(), decided, "a")
    assert [one.verdict for one in told.candidates] == [
        "w1 does not know the mirror 'lab'",
        "w2 does not know the mirror 'lab'",
    ]


def test_a_mirror_known_only_where_the_model_may_not_run_does_not_help() -> None:
    fleet = Paper()
    fleet.worker("w1", mirrors=("lab",))
    fleet.worker("w2")
    fleet.model("a", source="lab:org/a", workers=["w2"])
    fleet.jobs("a")
    assert fleet.plan().reasons["a"] == "no worker that may run it knows the mirror 'lab' of its source"


def test_a_worker_with_the_mirror_that_is_being_emptied_is_waited_for() -> None:
    """Else a drain of an hour fails requests that would have been served after it."""
    fleet = Paper()
    fleet.worker("w1", mirrors=("lab",))
    fleet.worker("w2")
    fleet.drain("w1")
    fleet.model("a", source="lab:org/a")
    fleet.jobs("a")
    assert fleet.plan().verdicts["a"].state == "waiting"


def test_the_mirrors_of_the_draft_model_and_of_the_model_may_be_known_apart() -> None:
    fleet = Paper()
    fleet.worker("w1", mirrors=("lab",))
    fleet.worker("w2", mirrors=("attic",))
    fleet.model("a", source="lab:org/a", options={"draft": "attic:org/small"})
    fleet.jobs("a")
    assert fleet.plan().reasons["a"] == "w1 does not know the mirror 'attic'; w2 does not know the mirror 'lab'"


def test_more_replicas_than_workers_is_explained() -> None:
    """A worker runs one replica of a model: an entry that asks for three of two workers is no riddle."""
    fleet = Paper(scale_up_after_s=5)
    fleet.worker("w1")
    fleet.worker("w2")
    fleet.model("a", max_replicas=3)
    fleet.ready("a", "w1")
    fleet.ready("a", "w2")
    fleet.jobs("a", queued=9, waiting=20)
    verdict = fleet.plan().verdicts["a"]
    assert verdict.state == "ready"
    assert verdict.reason == (
        "on w1, w2; no further worker can take it (2 of 3 placed): "
        "it is on w1 already, and a worker runs one replica of a model; "
        "it is on w2 already, and a worker runs one replica of a model"
    )
