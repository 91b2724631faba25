"""Scenarios of memory: what fits, what never will, and by what that is judged. Each names the failure it prevents."""

from dataclasses import replace

import msgspec

from gateway.placement.memory import Books, need
from tests.support.placement import GB, Paper, overcommitted, paper, placed


def test_two_models_are_not_promised_the_same_memory() -> None:
    """Both look at 8 GB free, both are sent there, one fails."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=5)
    fleet.jobs("a", waiting=2)
    fleet.jobs("b", waiting=1)
    assert placed(fleet.step()) == {"w1": ["a"]}
    assert not overcommitted(fleet.view())


def test_what_is_assigned_is_charged_before_it_loads() -> None:
    """Memory that the driver still shows as free was promised a moment ago."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=5)
    fleet.assigned("a", "w1")
    fleet.jobs("b")
    assert placed(fleet.plan()) == {}


def test_what_loads_is_charged_in_full() -> None:
    """Halfway through a load, half of its memory still looks free."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=5)
    fleet.loading("a", "w1")
    fleet.jobs("b")
    assert placed(fleet.plan()) == {}


def test_what_drains_is_charged_until_its_record_is_gone() -> None:
    """The next load starts while the last one still holds its memory, and fails for want of it."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=5)
    fleet.replica("a", "w1", "draining", running=1)
    fleet.jobs("b")
    decided = fleet.plan()
    assert placed(decided) == {} and decided.verdicts["b"].state == "waiting"
    del fleet.replicas["a@w1"]
    assert placed(fleet.plan()) == {"w1": ["b"]}


def test_a_model_that_fits_exactly_fits() -> None:
    """An off-by-one keeps the last byte free for ever."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=4)
    fleet.ready("a", "w1")
    fleet.jobs("b")
    assert placed(fleet.plan()) == {"w1": ["a", "b"]}


def test_fits_now_is_judged_by_free_memory_not_by_the_size_of_the_device() -> None:
    """An image model was loaded on the busiest node, because its card was the largest."""
    fleet = paper(("large", 24), ("small", 8))
    fleet.model("resident", size=20)
    fleet.model("a", size=6)
    fleet.ready("resident", "large", running=1)
    fleet.jobs("a")
    assert placed(fleet.plan()) == {"small": ["a"]}


def test_most_free_memory_is_judged_by_what_is_free_now() -> None:
    """As many models on either: the one with room is better than the one with the larger card."""
    fleet = paper(("a-large", 24), ("b-small", 16))
    fleet.model("heavy", size=20)
    fleet.model("light", size=1)
    fleet.model("a", size=3)
    fleet.ready("heavy", "a-large")
    fleet.ready("light", "b-small")
    fleet.jobs("a")
    assert placed(fleet.plan()) == {"b-small": ["a", "light"]}


def test_a_worker_with_fewer_models_goes_before_one_with_more_room() -> None:
    """Every model went to the host with most memory, and they shared its cores while the others stood idle."""
    fleet = paper(("w1", 24), ("w2", 16))
    fleet.model("resident", size=1)
    fleet.model("a", size=3)
    fleet.ready("resident", "w1")
    fleet.jobs("a")
    assert placed(fleet.plan()) == {"w2": ["a"]}


def test_memory_that_strangers_took_is_not_promised() -> None:
    """Three of three healthy while another process holds the card: the driver's word counts beside the books."""
    fleet = paper(("w1", 16))
    fleet.taken_by_others("w1", 12)
    fleet.model("a", size=6)
    fleet.jobs("a")
    decided = fleet.plan()
    assert placed(decided) == {} and "needs 6.44 GB on cpu of w1, where 4.29 GB is free" in decided.reasons["a"]


def test_a_full_device_is_no_reason_to_unload_what_fills_it() -> None:
    """A flagship under a live session was evicted because free memory, which it is meant to use up, was near zero."""
    fleet = paper(("w1", 16))
    fleet.model("flagship", size=16)
    fleet.ready("flagship", "w1", running=3)
    assert fleet.plan().changes == []


def test_what_a_load_took_there_goes_before_the_estimate() -> None:
    """The estimate was 1 GB too low, and the same load failed again and again."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=4)
    fleet.ready("a", "w1")
    fleet.took("b", "w1", 5)
    fleet.jobs("b")
    decided = fleet.step()
    assert placed(decided) == {"w1": ["a?"]}


def test_what_a_load_took_elsewhere_goes_before_the_estimate() -> None:
    """What one worker learned the next one had to learn again."""
    fleet = paper(("w1", 8), ("w2", 4.5))
    fleet.model("a", "b", size=4)
    fleet.ready("a", "w1", running=1)
    fleet.took("b", "w1", 5)
    fleet.jobs("b")
    wanted = need(fleet.view(), fleet.models["b"], "w2")
    assert (wanted.bytes, wanted.source) == (5 * GB, "measured on w1")


def test_what_was_measured_there_goes_before_what_was_measured_elsewhere() -> None:
    """A GPU host's figure decided over a CPU host's."""
    fleet = paper(("w1", 8), ("w2", 8))
    fleet.model("a", size=2)
    fleet.took("a", "w2", 3)
    fleet.took("a", "w1", 5)
    assert need(fleet.view(), fleet.models["a"], "w1").bytes == 5 * GB
    assert need(fleet.view(), fleet.models["a"], "w2").bytes == 3 * GB


def test_another_quantisation_is_another_model() -> None:
    """A catalogue without the quantisation loaded full-precision weights, by the figures of the quantised ones."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=7)
    fleet.took("a", "w1", 2)
    assert need(fleet.view(), fleet.models["a"], "w1").bytes == 2 * GB
    fleet.models["a"] = replace_model(fleet.models["a"], quantization="int4")
    assert need(fleet.view(), fleet.models["a"], "w1").bytes == 7 * GB


def replace_model(model, **fields):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(model, **fields)


def test_what_the_worker_lacked_is_known_from_then_on() -> None:
    """A model of unknown size was sent to the same full worker for ever."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=5)
    fleet.model("b", size=None)
    fleet.ready("a", "w1")
    fleet.failed("b", "w1", kind="no_memory", needs=6)
    fleet.jobs("b")
    assert placed(fleet.plan()) == {"w1": ["a?"]}


def test_what_took_more_than_it_was_promised_is_promised_more() -> None:
    """A load ran out of memory, and was tried again with the same promise for ever."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=2)
    fleet.assigned("a", "w1")
    fleet.failed("a", "w1", kind="underestimated", needs=3)
    fleet.jobs("a")
    assert placed(fleet.step()) == {"w1": []}
    decided = fleet.step()
    assert placed(decided) == {"w1": ["a"]}
    (given,) = decided.changes[0].models
    assert given.memory_bytes == 3 * GB
    assert fleet.step().changes == []  # it has the promise now, and is not taken away for the failure before


def test_the_room_of_what_was_underestimated_is_made_by_others() -> None:
    """It was given its place again and again beside a neighbour with whom it did not fit, and failed each time."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=2)
    fleet.model("b", size=5)
    fleet.ready("b", "w1")
    fleet.failed("a", "w1", kind="underestimated", needs=4)
    fleet.jobs("a")
    assert placed(fleet.plan()) == {"w1": ["b?"]}


def test_what_the_worker_says_now_goes_before_what_it_took_then() -> None:
    """It had been measured once, took more now, and was promised the old figure with every plan."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=2)
    fleet.took("a", "w1", 3)
    fleet.failed("a", "w1", kind="underestimated", needs=4)
    fleet.jobs("a")
    decided = fleet.step()
    assert [one.memory_bytes for one in decided.changes[0].models] == [4 * GB]
    assert fleet.step().changes == []


def test_what_is_given_another_place_is_given_time_to_load_there() -> None:
    """Of two models that had failed, each plan assigned one and took it away for the other; neither ever loaded."""
    fleet = paper(("w1", 5))
    fleet.model("a", size=1)
    fleet.model("b", size=4)
    for model, needs in (("a", 2), ("b", 5)):
        fleet.failed(model, "w1", kind="underestimated", needs=needs, again=600)
        fleet.jobs(model, waiting=2 if model == "a" else 1)
    assert placed(fleet.step()) == {"w1": ["a"]}
    fleet.now += 1
    assert fleet.step().changes == []
    fleet.obey()
    del fleet.failures["w1", "a"]
    fleet.jobs("a", queued=0)
    fleet.now += 60
    fleet.replicas["a@w1"] = msgspec.structs.replace(fleet.replicas["a@w1"], since_s=fleet.now - 50)
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_what_wants_more_and_more_displaces_nobody() -> None:
    """A model that ran out of memory for another reason emptied the host, a neighbour with each attempt."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=2)
    fleet.model("b", size=5)
    fleet.ready("b", "w1")
    fleet.failed("a", "w1", kind="underestimated", needs=4, attempts=4)
    fleet.jobs("a")
    decided = fleet.plan()
    assert placed(decided) == {} and "it failed on w1" in decided.reasons["a"]
    del fleet.replicas["b@w1"], fleet.wants["w1"]
    assert placed(fleet.plan()) == {"w1": ["a"]}  # where there is room, it is tried on


def test_what_was_underestimated_beyond_every_device_is_refused_with_numbers() -> None:
    """A model whose needs grew with each failure was tried for ever."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=2)
    fleet.failed("a", "w1", kind="underestimated", needs=9)
    fleet.jobs("a")
    verdict = fleet.plan().verdicts["a"]
    assert (verdict.state, verdict.inputs["needs_bytes"]) == ("cannot_fit", 9 * GB)


def test_a_refusal_that_grew_old_is_tried_again() -> None:
    """The worker refused once, while a stranger held the memory, and was never asked again."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=5)
    fleet.failed("a", "w1", kind="no_memory", needs=5)
    fleet.jobs("a")
    decided = fleet.plan()
    assert placed(decided) == {} and "w1 refused it" in decided.reasons["a"]
    assert decided.wake_at_s == fleet.now + 10
    fleet.failures.clear()
    assert placed(fleet.plan()) == {"w1": ["a"]}


def test_a_floor_counts_where_the_estimate_is_lower() -> None:
    """The operator knows that this model needs more than its files say, and nobody asks the operator."""
    fleet = paper(("w1", 4), ("w2", 16))
    fleet.model("a", size=2, memory_floor_bytes=6 * GB)
    fleet.jobs("a")
    assert placed(fleet.plan()) == {"w2": ["a"]}
    del fleet.workers["w2"]
    assert fleet.plan().verdicts["a"].state == "cannot_fit"


def test_a_model_that_could_never_fit_is_refused_with_numbers() -> None:
    """It waited in the queue until its deadline, for a worker that does not exist."""
    fleet = paper(("w1", 8), ("w2", 4))
    fleet.model("a", size=20)
    fleet.jobs("a")
    verdict = fleet.plan().verdicts["a"]
    assert verdict.state == "cannot_fit"
    assert "needs 21.47 GB on cpu of w1, which has 8.59 GB" in verdict.reason
    assert verdict.inputs["largest_bytes"] == 8 * GB


def test_what_does_not_fit_empties_no_worker() -> None:
    """Up to three models were evicted for one that then did not fit either."""
    fleet = paper(("w1", 8))
    fleet.model("resident", size=4)
    fleet.model("a", size=20)
    fleet.ready("resident", "w1")
    fleet.jobs("a")
    assert fleet.plan().changes == []


def test_before_the_fleet_is_settled_nothing_is_refused_for_good() -> None:
    """A leader that had just begun told clients that their model cannot fit: the large worker was not heard yet."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=20)
    fleet.jobs("a")
    fleet.is_settled = False
    assert fleet.plan().verdicts["a"].state == "waiting"


def test_what_could_fit_with_less_is_granted_the_whole_device() -> None:
    """A measured grant of a larger worker kept a model off a worker that it could live on."""
    fleet = paper(("w1", 8))
    fleet.model("a", size=12, least=6)
    fleet.jobs("a")
    (record,) = fleet.plan().changes
    assert record.models[0].memory_bytes == 8 * GB


def test_a_model_over_two_devices_is_compared_device_by_device() -> None:
    """A whole model's size was compared with one device: models over several never fitted and always evicted."""
    fleet = Paper()
    fleet.worker("w1", 8, 8)
    fleet.model("a", size=6, devices=2)
    fleet.jobs("a")
    (record,) = fleet.plan().changes
    assert (record.models[0].devices, record.models[0].memory_bytes) == (["cuda:0", "cuda:1"], 6 * GB)


def test_a_worker_with_too_few_devices_is_none_for_it() -> None:
    """Two ranks on one card."""
    fleet = Paper()
    fleet.worker("w1", 24, kind="cuda")
    fleet.model("a", size=6, devices=2)
    fleet.jobs("a")
    decided = fleet.plan()
    assert decided.verdicts["a"].state == "cannot_fit"
    assert decided.reasons["a"] == "w1 has 1 of the 2 devices that it takes"


def test_the_emptier_device_is_chosen_not_the_first() -> None:
    """The first devices that were large enough were taken, whatever was free on them."""
    fleet = Paper()
    fleet.worker("w1", 8, 8)
    fleet.model("a", "b", size=6)
    fleet.ready("a", "w1", device="cuda:0", running=1)
    fleet.jobs("b")
    decided = fleet.plan()
    assert decided.changes[0].models[1].devices == ["cuda:1"]


def test_only_what_sits_on_the_device_makes_room_on_it() -> None:
    """All models of a node were added up, also those on other devices; one was evicted and nothing was gained."""
    fleet = Paper()
    fleet.worker("w1", 8, 8)
    fleet.model("old", size=3)
    fleet.model("busy", size=8)
    fleet.model("new", size=6)
    fleet.ready("old", "w1", device="cuda:0", idle=500)
    fleet.ready("busy", "w1", device="cuda:1", running=1)
    fleet.jobs("new")
    assert placed(fleet.plan()) == {"w1": ["busy", "old?"]}
    fleet.model("new", size=8)
    fleet.replicas["old@w1"].running = 1
    assert placed(fleet.plan()) == {}


def test_what_leaves_is_counted_once() -> None:
    """Two that wait were each promised the memory of the same model that leaves."""
    fleet = paper(("w1", 8))
    fleet.model("old", size=6)
    fleet.model("a", "b", size=5)
    fleet.replica("old", "w1", "draining")
    fleet.jobs("a", waiting=9)
    fleet.jobs("b", waiting=5)
    fleet.step()
    del fleet.replicas["old@w1"]
    assert placed(fleet.step()) == {"w1": ["a"]}
    assert not overcommitted(fleet.view())


def test_room_that_is_being_made_is_not_taken_by_whoever_comes_later() -> None:
    """Small models slipped into every gap, and the large one for which it was made never got in."""
    fleet = paper(("w1", 8))
    fleet.model("leaving", size=5)
    fleet.model("large", size=8)
    fleet.model("small", size=2)
    fleet.replica("leaving", "w1", "draining", running=1)
    fleet.jobs("large", waiting=9)
    fleet.jobs("small", waiting=1)
    decided = fleet.plan()
    assert placed(decided) == {}
    assert decided.verdicts["small"].state == "waiting"


def test_beside_room_that_is_kept_the_rest_is_used() -> None:
    """A device stood empty for a minute because a part of it was kept for one that waited."""
    fleet = paper(("w1", 16))
    fleet.model("leaving", size=5)
    fleet.model("large", size=12)
    fleet.model("small", size=2)
    fleet.replica("leaving", "w1", "draining", running=1)
    fleet.jobs("large", waiting=9)
    fleet.jobs("small", waiting=1)
    assert placed(fleet.plan()) == {"w1": ["small"]}


def test_a_replica_that_took_more_than_promised_is_charged_with_what_it_took() -> None:
    """The books said 4 GB, the card said 6."""
    fleet = paper(("w1", 10))
    fleet.model("a", "b", size=4)
    fleet.ready("a", "w1", measured_bytes=int(6.5 * GB))
    assert Books(fleet.view()).sites["w1", "cpu"].charged_bytes == int(6.5 * GB)
    fleet.jobs("b")
    assert placed(fleet.plan()) == {"w1": ["a?"]}


def test_the_worst_of_views_is_not_over_committed_by_the_plan() -> None:
    """A view in which everything is taken already does not get worse."""
    fleet = paper(("w1", 8), ("w2", 6))
    fleet.model("a", "b", "c", "d", size=5)
    fleet.ready("a", "w1", running=1)
    fleet.loading("b", "w2")
    for model in ("c", "d"):
        fleet.jobs(model)
    fleet.step()
    assert not overcommitted(replace(fleet.view()))


def test_what_was_taken_away_is_charged_until_the_worker_knows() -> None:
    """The worker had begun to load it a moment ago, its record was under way, and its memory was promised again."""
    fleet = paper(("w1", 8))
    fleet.model("a", "b", size=5)
    fleet.assigned("a", "w1")
    fleet.load("b")
    fleet.unload("a")
    fleet.deaf.add("w1")
    assert placed(fleet.step()) == {"w1": []}
    assert placed(fleet.step()) == {}
    fleet.deaf.clear()
    assert placed(fleet.step()) == {"w1": ["b"]}
