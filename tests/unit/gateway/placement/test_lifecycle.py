"""Scenarios of a model's life: replicas, failures, workers that come, go and are emptied. Each names its failure."""

import msgspec

from tests.support.placement import GB, Paper, placed


def workers(*names: str, **settings: float) -> Paper:
    fleet = Paper(**settings)
    for name in names:
        fleet.worker(name, 8)
    return fleet


# --- replicas --------------------------------------------------------------------------------------------------


def test_a_backlog_beside_a_busy_replica_brings_another() -> None:
    """Two workers stood empty while one model's queue grew on the third."""
    fleet = workers("w1", "w2")
    fleet.model("a", max_replicas=2)
    fleet.ready("a", "w1", running=4)
    fleet.jobs("a", 9, waiting=6)
    decided = fleet.step()
    assert placed(decided) == {"w2": ["a"]}
    assert fleet.wants["w2"].models[0].reason == "jobs outrun its replicas"


def test_a_short_queue_brings_no_replica() -> None:
    """Every burst of a second loaded another copy."""
    fleet = workers("w1", "w2")
    fleet.model("a", max_replicas=2)
    fleet.ready("a", "w1", running=4)
    fleet.jobs("a", 9, waiting=2)
    decided = fleet.step()
    assert decided.changes == [] and decided.wake_at_s == fleet.now + 3


def test_one_more_replica_at_a_time() -> None:
    """A burst loaded copies on every worker at once."""
    fleet = workers("w1", "w2", "w3")
    fleet.model("a", max_replicas=3)
    fleet.ready("a", "w1", running=4)
    fleet.loading("a", "w2")
    fleet.jobs("a", 99, waiting=60)
    assert fleet.step().changes == []


def test_no_more_replicas_than_the_entry_allows() -> None:
    """The backlog of one model took the whole fleet."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1", running=4)
    fleet.jobs("a", 99, waiting=50)
    assert fleet.step().changes == []


def test_a_further_replica_displaces_nobody() -> None:
    """The second copy of a popular model unloaded the only copy of another."""
    fleet = workers("w1", "w2")
    fleet.model("a", "b", size=6, max_replicas=2)
    fleet.ready("a", "w1", running=4)
    fleet.ready("b", "w2", idle=50)
    fleet.jobs("a", 99, waiting=50)
    assert fleet.step().changes == []


def test_a_spare_replica_goes_when_idle() -> None:
    """The copies of one busy hour stayed for the week."""
    fleet = workers("w1", "w2")
    fleet.model("a", max_replicas=2)
    fleet.ready("a", "w1", idle=10)
    fleet.ready("a", "w2", idle=60)
    assert placed(fleet.step()) == {"w2": ["a?"]}


def test_a_spare_replica_stays_for_a_while() -> None:
    """It was unloaded at the first pause and loaded again at the next burst."""
    fleet = workers("w1", "w2")
    fleet.model("a", max_replicas=2)
    fleet.ready("a", "w1", idle=10)
    fleet.ready("a", "w2", idle=50)
    decided = fleet.step()
    assert decided.changes == [] and decided.wake_at_s == fleet.now + 10


def test_the_last_replica_is_no_spare_one() -> None:
    """Scaling down went to zero, although nobody had asked for that."""
    fleet = workers("w1")
    fleet.model("a", max_replicas=2)
    fleet.ready("a", "w1", idle=900)
    assert fleet.step().changes == []


def test_fewer_wanted_replicas_are_unloaded_at_once() -> None:
    """An operator asked for one instead of three, and three stayed."""
    fleet = workers("w1", "w2", "w3")
    fleet.model("a")
    fleet.load("a", replicas=1)
    fleet.ready("a", "w1", idle=10)
    fleet.ready("a", "w2", idle=300)
    fleet.loading("a", "w3")
    assert placed(fleet.step()) == {"w2": [], "w3": []}


# --- failures --------------------------------------------------------------------------------------------------


def test_a_failure_counts_for_the_worker_and_the_model_alone() -> None:
    """The first node's failure silenced the model on every node, as it was kept by the model's name."""
    fleet = workers("w1", "w2")
    fleet.model("a", "b")
    fleet.failed("a", "w1")
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w2": ["a"]}
    other = workers("w1")
    other.model("a", "b")
    other.failed("a", "w1")
    other.jobs("b")
    assert placed(other.step()) == {"w1": ["b"]}


def test_a_failed_load_goes_where_it_did_not_fail() -> None:
    """It was tried where it had failed, for ever."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.assigned("a", "w1")
    fleet.failed("a", "w1", "the front exited")
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w1": [], "w2": ["a"]}


def test_a_failed_load_stays_where_there_is_no_other_place() -> None:
    """A fleet stood without models for 14 hours after a power cut: one failed start was the last."""
    fleet = workers("w1")
    fleet.model("a")
    fleet.assigned("a", "w1")
    fleet.failed("a", "w1", "the hub cannot be reached")
    fleet.load("a")
    decided = fleet.step()
    assert decided.changes == []
    verdict = decided.verdicts["a"]
    assert verdict.state == "failed" and "the hub cannot be reached (attempt 1)" in verdict.reason


def test_a_retry_under_way_is_not_moved() -> None:
    """The reason of the last failure was still in the record while the next attempt was at 90 %."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.loading("a", "w1")
    fleet.failed("a", "w1")
    fleet.jobs("a")
    assert fleet.step().changes == []


def test_a_replica_that_runs_again_is_not_moved() -> None:
    """A model that had recovered was reported as unknown and loaded elsewhere."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.failed("a", "w1")
    assert fleet.step().changes == []
    assert fleet.plan().verdicts["a"].state == "ready"


def test_a_failed_replica_of_two_does_not_stop_the_other() -> None:
    """One bad host took a model out of service everywhere."""
    fleet = workers("w1", "w2")
    fleet.model("a", min_replicas=2, max_replicas=2)
    fleet.ready("a", "w1", running=1)
    fleet.assigned("a", "w2")
    fleet.failed("a", "w2")
    decided = fleet.step()
    assert decided.changes == [] and decided.verdicts["a"].state == "ready"


def test_a_load_refused_for_want_of_memory_gives_up_its_place() -> None:
    """It stayed assigned, was refused every minute, and its memory stayed promised."""
    fleet = workers("w1")
    fleet.model("a", "b", size=4)
    fleet.assigned("a", "w1")
    fleet.failed("a", "w1", kind="no_memory", needs=5)
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w1": []}


def test_workers_that_failed_are_the_last_choice() -> None:
    """The emptiest worker was the emptiest because nothing ever loaded there."""
    fleet = workers("w1", "w2")
    fleet.model("a", "b", size=3)
    fleet.ready("b", "w1")
    fleet.failed("a", "w2")
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w1": ["a", "b"]}


# --- workers ---------------------------------------------------------------------------------------------------


def test_a_worker_that_missed_a_beat_is_not_lost() -> None:
    """One missed poll under load took a node out of routing, and its models were loaded elsewhere."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.jobs("a")
    del fleet.workers["w1"], fleet.replicas["a@w1"]
    assert fleet.step().changes == []


def test_a_dead_worker_gives_its_models_to_others() -> None:
    """A dead node kept its models for 70 minutes."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.jobs("a")
    del fleet.workers["w1"], fleet.replicas["a@w1"]
    fleet.lost.add("w1")
    assert placed(fleet.step()) == {"w1": [], "w2": ["a"]}


def test_a_lost_worker_is_not_told_to_come_back_with_what_nobody_wants() -> None:
    """It returned, loaded everything that it had, and displaced what had been placed meanwhile."""
    fleet = workers("w2")
    fleet.model("a")
    fleet.assigned("a", "w1")
    fleet.lost.add("w1")
    assert placed(fleet.step()) == {"w1": []}


def test_a_worker_that_joins_takes_what_waited() -> None:
    """A model that waited for room was not looked at again."""
    fleet = workers("w1")
    fleet.model("a", "b", size=6)
    fleet.ready("a", "w1", running=1)
    fleet.jobs("b", waiting=20)
    assert fleet.step().changes == []
    fleet.worker("w2", 8)
    assert placed(fleet.step()) == {"w2": ["b"]}


def test_a_worker_that_joins_makes_an_eviction_unnecessary() -> None:
    """The request to yield stood, although there was room elsewhere by now."""
    fleet = workers("w1")
    fleet.model("a", "b", size=6)
    fleet.ready("a", "w1")
    fleet.jobs("b")
    assert placed(fleet.step()) == {"w1": ["a?"]}
    fleet.worker("w2", 8)
    assert placed(fleet.step()) == {"w1": ["a"], "w2": ["b"]}


def test_a_worker_that_joins_moves_nothing_that_serves() -> None:
    """Adding a replica made everything be scheduled again, and all workers were not ready."""
    fleet = workers("w1")
    fleet.model("a", "b", size=3)
    fleet.ready("a", "w1", running=1)
    fleet.ready("b", "w1")
    fleet.worker("w2", 8)
    assert fleet.step().changes == []


def test_a_worker_that_restarts_picks_up_its_assignment() -> None:
    """A node never came back: its models were assigned to it, and it was thought to have them."""
    fleet = workers("w1")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.replicas.clear()
    fleet.jobs("a")
    decided = fleet.step()
    assert decided.changes == [] and decided.verdicts["a"].state == "planned"


def test_a_drained_worker_gets_nothing() -> None:
    """The node under repair was the emptiest, and got every new model."""
    fleet = workers("w1", "w2")
    fleet.model("a", "b", size=3)
    fleet.ready("b", "w2", running=1)
    fleet.drain("w1")
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w2": ["a", "b"]}


def test_a_drained_worker_keeps_serving_until_the_other_is_ready() -> None:
    """Draining a node interrupted its models for the time of a load."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1", running=1)
    fleet.load("a")
    fleet.drain("w1")
    assert placed(fleet.step()) == {"w2": ["a"]}
    fleet.loading("a", "w2")
    assert fleet.step().changes == []
    fleet.replica("a", "w2")
    assert placed(fleet.step()) == {"w1": []}


def test_a_drained_worker_drops_what_nobody_needs() -> None:
    """A drain moved models that had not been used for a week."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1", idle=900)
    fleet.drain("w1")
    assert placed(fleet.step()) == {"w1": []}


def test_a_drain_moves_what_is_in_use() -> None:
    """What ran was finished, and the next request found its model cold."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1", running=1)
    fleet.drain("w1")
    assert placed(fleet.step()) == {"w2": ["a"]}


def test_a_drain_ends_where_nothing_else_has_room() -> None:
    """The last worker of its kind could never be drained."""
    fleet = workers("w1")
    fleet.model("a")
    fleet.ready("a", "w1", running=1)
    fleet.load("a")
    fleet.drain("w1")
    decided = fleet.step()
    assert placed(decided) == {"w1": []}
    assert decided.verdicts["a"].state in ("waiting", "draining")


def test_a_worker_that_stops_by_itself_keeps_its_assignment() -> None:
    """It restarted for an update and came back to nothing."""
    fleet = Paper()
    fleet.worker("w1", 8, state="draining")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.load("a")
    assert fleet.step().changes == []


def test_a_worker_that_stops_is_replaced() -> None:
    """Its models were missing until it was gone altogether."""
    fleet = Paper()
    fleet.worker("w1", 8, state="draining")
    fleet.worker("w2", 8)
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.load("a")
    assert placed(fleet.step()) == {"w2": ["a"]}


def test_an_entry_may_name_its_workers() -> None:
    """Pins were silently off in production."""
    fleet = workers("w1", "w2")
    fleet.model("a", workers=["w2"])
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w2": ["a"]}


def test_a_model_leaves_workers_that_its_entry_no_longer_names() -> None:
    """The entry changed, and the licence server called."""
    fleet = workers("w1", "w2")
    fleet.model("a", workers=["w2"])
    fleet.ready("a", "w1")
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w1": [], "w2": ["a"]}


def test_a_model_that_is_wanted_elsewhere_serves_until_it_is_ready_there() -> None:
    """An operator moved a model, and its clients waited for the whole of a load."""
    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1", running=1)
    fleet.load("a", "w2")
    assert placed(fleet.step()) == {"w2": ["a"]}
    fleet.loading("a", "w2")
    assert fleet.step().changes == []
    fleet.replica("a", "w2")
    assert placed(fleet.step()) == {"w1": []}


def test_a_model_that_is_wanted_where_there_is_no_worker_stays() -> None:
    """A name was misspelt, and the model was gone."""
    fleet = workers("w1")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.load("a", "w9")
    decided = fleet.step()
    assert decided.changes == []
    verdict = decided.verdicts["a"]
    assert (verdict.state, verdict.reason) == ("ready", "on w1; none of the workers it may run on is there: w9")


def test_a_named_worker_that_is_away_is_waited_for_not_refused() -> None:
    """A client was told that its model can never fit, because its one worker was restarting."""
    fleet = workers("w1")
    fleet.model("a", size=20, workers=["w9"])
    fleet.jobs("a")
    verdict = fleet.step().verdicts["a"]
    assert (verdict.state, verdict.reason) == ("waiting", "none of the workers it may run on is there: w9")


# --- the catalogue ---------------------------------------------------------------------------------------------


def test_a_description_that_changes_moves_no_memory() -> None:
    """A typo in the catalogue unloaded a model."""
    fleet = workers("w1")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.models["a"] = msgspec.structs.replace(fleet.models["a"], description="better")
    (record,) = fleet.step().changes
    assert record.models[0].memory_bytes == 4 * GB
    assert record.models[0].model.description == "better"


def test_a_change_of_what_it_weighs_is_promised_anew() -> None:
    """Another quantisation was given the memory of the last one, and did not fit into it."""
    fleet = workers("w1")
    fleet.model("a")
    fleet.ready("a", "w1")
    fleet.models["a"] = msgspec.structs.replace(fleet.models["a"], dtype="float32")
    fleet.model("b", size=2)
    fleet.ready("b", "w1", running=1)
    fleet.sizes["a"] = msgspec_size(7)
    (record,) = fleet.step().changes
    assert record.models[0].memory_bytes == 6 * GB  # all that is there beside the other


def msgspec_size(size: float):  # type: ignore[no-untyped-def]
    from gateway.placement.view import Size

    return Size(minimum_bytes=int(size * GB), wanted_bytes=int(size * GB))


# --- leaders ---------------------------------------------------------------------------------------------------


def test_a_new_leader_writes_every_assignment_anew() -> None:
    """The deposed leader's last write came after the new leader's first look, and was obeyed."""
    from gateway.placement.planner import plan

    fleet = workers("w1", "w2")
    fleet.model("a")
    fleet.ready("a", "w1")
    record, empty = plan(fleet.view(), epoch=9, claim=True).changes
    assert (record.worker, record.epoch, record.generation) == ("w1", 9, 4)
    assert [one.model.id for one in record.models] == ["a"]
    assert (empty.worker, empty.models) == ("w2", [])  # else the deposed leader could create it
    fleet.wants |= {"w1": record, "w2": empty}
    assert plan(fleet.view(), epoch=9, claim=True).changes == []


def test_a_new_leader_goes_on_with_an_eviction_under_way() -> None:
    """The new leader did not know for whom room was being made, and made more."""
    fleet = workers("w1")
    fleet.model("a", "b", "c", size=4)
    fleet.ready("a", "w1", idle=50)
    fleet.ready("b", "w1", idle=200)
    fleet.jobs("c")
    fleet.step()
    fleet.replicas["b@w1"].state = "draining"
    decided = fleet.plan(epoch=2)
    assert decided.decisions == []
    del fleet.replicas["b@w1"]
    assert placed(fleet.plan(epoch=2)) == {"w1": ["a", "c"]}
