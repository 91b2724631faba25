"""Scenarios of models that come and go without anybody else's demand. Each names the failure it prevents."""

from tests.support.placement import GB, one_slot, placed


def test_an_idle_model_is_unloaded_after_its_time() -> None:
    """A model used once a week held its memory for the week."""
    fleet = one_slot()
    fleet.model("a", keep_alive_s=30)
    fleet.ready("a", "w1", idle=29)
    assert (fleet.step().changes, fleet.step().wake_at_s) == ([], fleet.now + 1)
    fleet.now += 1
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_keep_alive_counts_from_the_load_where_no_job_came() -> None:
    """It was loaded, its client had gone, and it was never used: it stayed for ever, or went at once."""
    fleet = one_slot()
    fleet.model("a", keep_alive_s=30)
    fleet.ready("a", "w1", age=20, load_s=5.0, idle=9999)
    assert fleet.step().changes == []
    fleet.now += 15
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_the_setting_speaks_for_entries_that_do_not() -> None:
    """keep_alive of the settings was accepted and ignored."""
    fleet = one_slot("a", keep_alive_s=60)
    fleet.ready("a", "w1", idle=61)
    assert placed(fleet.step()) == {"w1": ["a?"]}


def test_what_is_wanted_loaded_is_not_unloaded_for_being_idle() -> None:
    """It was unloaded by one rule and loaded by the next, every minute."""
    fleet = one_slot()
    fleet.model("a", keep_alive_s=30, min_replicas=1)
    fleet.ready("a", "w1", idle=900)
    assert fleet.step().changes == []


def test_a_busy_model_is_not_idle() -> None:
    """One answer longer than keep_alive, and its model was gone."""
    fleet = one_slot()
    fleet.model("a", keep_alive_s=30)
    fleet.ready("a", "w1", idle=900, running=1)
    assert fleet.step().changes == []


def test_min_replicas_are_kept_loaded_without_demand() -> None:
    """The first request of the day waited for the load that the entry was to prevent."""
    fleet = one_slot()
    fleet.model("a", min_replicas=1)
    assert placed(fleet.step()) == {"w1": ["a"]}
    assert fleet.wants["w1"].models[0].memory_bytes == 4 * GB
