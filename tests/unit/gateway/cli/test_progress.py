"""What the fleet's records say of a model on its way."""

from gateway.cli.progress import Row, describe, megabytes, model_progress
from shared.records import Failure, ReplicaRecord, WorkerRecord


def worker(name: str = "w", *failures: Failure) -> dict[str, WorkerRecord]:
    return {name: WorkerRecord(name=name, incarnation="i", host="h", failures=list(failures))}


def replica(state: str, **fields: object) -> dict[str, ReplicaRecord]:
    record = ReplicaRecord(**{"id": "r", "model": "m", "worker": "w", "state": state} | fields)
    return {record.id: record}


def test_nothing_known_means_waiting_with_the_leaders_reason() -> None:
    progress = model_progress("m", worker(), {}, reason="no device has 4 GB free")
    assert progress.row == Row(name="m", state="waiting", text="no device has 4 GB free")
    assert (progress.num_ready, progress.num_loading, progress.failure) == (0, 0, None)


def test_a_loading_replica_shows_its_stage_and_bytes() -> None:
    loading = replica("loading", stage="download", done_bytes=1_500_000, total_bytes=3_000_000)
    progress = model_progress("m", worker(), loading)
    assert progress.num_loading == 1
    assert describe(progress.row) == "download on w: 1.5 MB of 3.0 MB"


def test_ready_goes_before_loading_and_names_the_workers() -> None:
    replicas = replica("loading", id="r1") | replica("ready", id="r2")
    progress = model_progress("m", worker(), replicas)
    assert (progress.row.state, progress.row.text) == ("ready", "on w")
    assert (progress.num_ready, progress.num_loading) == (1, 1)


def test_replicas_of_other_models_and_other_workers_do_not_count() -> None:
    replicas = replica("ready", id="r1", model="other") | replica("ready", id="r2", worker="stranger")
    assert model_progress("m", worker(), replicas).row.state == "waiting"


def test_the_latest_failure_counts_when_nothing_runs() -> None:
    workers = worker("w", Failure(model="m", reason="old", at_s=1.0), Failure(model="m", reason="new", at_s=2.0))
    progress = model_progress("m", workers, {})
    assert progress.failure is not None
    assert (progress.row.state, progress.row.text) == ("failed", "new")


def test_a_failure_does_not_count_while_a_replica_loads_again() -> None:
    workers = worker("w", Failure(model="m", reason="old", at_s=1.0))
    assert model_progress("m", workers, replica("loading")).failure is None


def test_failures_that_were_there_before_are_ignored() -> None:
    workers = worker("w", Failure(model="m", reason="old", at_s=1.0))
    assert model_progress("m", workers, {}, ignore={("w", 1.0)}).row.state == "waiting"
    assert model_progress("m", workers, {}, ignore={("w", 0.5)}).row.state == "failed"


def test_a_failed_replica_is_a_failure_also_before_its_worker_says_so() -> None:
    progress = model_progress("m", worker(), replica("failed", reason="out of memory"))
    assert progress.failure is not None
    assert progress.failure.reason == "out of memory"


def test_sizes_are_for_people() -> None:
    assert megabytes(12_340_000) == "12.3 MB"
    assert megabytes(1_500_000_000) == "1.50 GB"
