"""The fleet as rows and tables."""

from dataclasses import replace

from rich.console import Console

from gateway.cli.tables import Backlog, Snapshot, model_rows, models_view, snapshot_json, status_view
from shared.records import (
    Assigned,
    AssignmentRecord,
    Device,
    Failure,
    GatewayRecord,
    IntentRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)

MODELS = {name: ModelRecord(id=name, source=f"/models/{name}") for name in ("big", "busy", "cold", "coming")}
WORKERS = {
    "gpu": WorkerRecord(
        name="gpu",
        incarnation="i",
        host="host-1",
        devices=[
            Device(
                id="cuda:0",
                kind="cuda",
                name="A100",
                total_bytes=40_000_000_000,
                free_bytes=10_000_000_000,
                reserved_bytes=6_000_000_000,
            ),
            Device(id="cuda:1", kind="cuda", name="A100", total_bytes=40_000_000_000, free_bytes=39_000_000_000),
        ],
        cores=8,
        reserved_cores=2,
        replicas=["r"],
        failures=[Failure(model="big", reason="needs 80 GB", at_s=1.0)],
    )
}
REPLICAS = {
    "r": ReplicaRecord(
        id="r",
        model="busy",
        worker="gpu",
        state="ready",
        devices=["cuda:0"],
        slots=8,
        running=3,
        blocks_total=100,
        blocks_free=25,
        since_s=100.0,
        at_s=7400.0,
    )
}
SNAPSHOT = Snapshot(
    workers=WORKERS,
    replicas=REPLICAS,
    gateways={"g": GatewayRecord(id="g", host="host-2", url="http://host-2:31313", in_flight=5)},
    models=MODELS,
    intents={"busy": IntentRecord(model="busy", want="loaded")},
    wants={
        "gpu": AssignmentRecord(
            worker="gpu",
            epoch=1,
            generation=1,
            models=[Assigned(model=MODELS["busy"]), Assigned(model=MODELS["coming"])],
        )
    },
    backlog={"busy": Backlog(queued=2, running=3), "gone": Backlog(queued=1)},
)


def shown(view: object) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_every_model_has_the_state_that_the_records_say() -> None:
    states = {row.model: row.state for row in model_rows(SNAPSHOT)}
    assert states == {"big": "failed", "busy": "ready", "cold": "cold", "coming": "assigned", "gone": "cold"}


def test_a_row_counts_replicas_slots_and_jobs() -> None:
    (row,) = (row for row in model_rows(SNAPSHOT) if row.model == "busy")
    assert (row.ready, row.loading, row.running, row.slots, row.queued, row.want) == (1, 0, 3, 8, 2, "loaded")


def test_a_load_under_way_shows_its_bytes_and_a_model_that_waits_its_reason() -> None:
    loading = ReplicaRecord(
        id="l", model="big", worker="gpu", state="loading", stage="read", done_bytes=430_000_000, total_bytes=10**9
    )
    rows = model_rows(
        replace(SNAPSHOT, replicas=REPLICAS | {"l": loading}, reasons={"cold": "waits for busy to leave gpu"})
    )
    details = {row.model: row.detail for row in rows}
    assert details["big"] == "read on gpu: 430.0 MB of 1.00 GB"
    assert details["cold"] == "waits for busy to leave gpu"


def test_jobs_of_a_model_that_left_the_catalogue_are_not_hidden() -> None:
    (row,) = (row for row in model_rows(SNAPSHOT) if row.model == "gone")
    assert (row.queued, row.source) == (1, "not in the catalogue")


def test_the_tables_show_what_an_operator_looks_for() -> None:
    text = shown(status_view(SNAPSHOT))
    for expected in (
        "host-1",
        "cuda:1 A100",
        "6.00 GB of 40.00 GB",
        "10.00 GB",
        "2 of 8",
        "25 %",
        "2 h 1 min",
        "needs 80 GB",
    ):
        assert expected in text
    assert "http://host-2:31313" in text
    assert "/models/cold" in shown(models_view(SNAPSHOT, sources=True))


def test_an_empty_fleet_is_shown_as_empty() -> None:
    nothing = Snapshot(workers={}, replicas={}, gateways={}, models={}, intents={}, wants={}, backlog={})
    assert shown(status_view(nothing)).count("none") == 4


def test_json_holds_the_same() -> None:
    facts = snapshot_json(SNAPSHOT)
    assert (facts["queued"], facts["running"]) == (3, 3)
    assert facts["workers"][0]["devices"][1]["free_bytes"] == 39_000_000_000
    assert {model["model"]: model["state"] for model in facts["models"]}["busy"] == "ready"
