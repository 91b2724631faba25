"""Near names and states of models."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, cast

import orjson
import pytest

from gateway.catalogue import Catalogue
from gateway.dialects import models
from gateway.errors import InvalidRequest, ModelNotFound
from shared.fleet import Fleet
from shared.records import Failure, MeasuredRecord, Measurement, ModelRecord, ReplicaRecord, WorkerRecord

LOADS = [Measurement(worker="a", bytes=1, load_s=8.0), Measurement(worker="b", bytes=1, load_s=12.0)]


def a_fleet(
    models: Sequence[str | ModelRecord], *replicas: ReplicaRecord, workers: Sequence[WorkerRecord] = ()
) -> Fleet:
    records = [ModelRecord(id=one, source="s", created_s=5.5) if isinstance(one, str) else one for one in models]
    return cast(
        Fleet,
        SimpleNamespace(
            models={record.id: record for record in records},
            workers={worker.name: worker for worker in workers},
            replicas={replica.id: replica for replica in replicas},
            measured={"m": MeasuredRecord(model="m", variant="", loads=LOADS)},
            replicas_of=lambda model: [one for one in replicas if one.model == model],
        ),
    )


def a_replica(
    state: Literal["loading", "ready", "draining", "failed"], ident: str = "r", **fields: Any
) -> ReplicaRecord:
    return ReplicaRecord(id=ident, model="m", worker=f"w-{ident}", state=state, **fields)


def test_an_unknown_model_names_near_ones() -> None:
    catalogue = Catalogue(a_fleet(["Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "acme/other"]))
    with pytest.raises(ModelNotFound) as refused:
        catalogue.require("qwen/qwen3-8b")
    assert refused.value.near[0] == "Qwen/Qwen3-8B"
    assert "Qwen/Qwen3-8B" in refused.value.message
    assert "acme/other" not in refused.value.message


def test_a_part_of_a_name_is_near() -> None:
    assert Catalogue(a_fleet(["meta-llama/Llama-3.1-8B-Instruct"])).near("llama") == [
        "meta-llama/Llama-3.1-8B-Instruct"
    ]


def test_nothing_near_says_where_to_look() -> None:
    with pytest.raises(ModelNotFound, match="GET /v1/models"):
        Catalogue(a_fleet([])).require("x" * 100_000)


def test_a_model_is_as_ready_as_its_best_replica() -> None:
    assert Catalogue(a_fleet(["m"])).state("m") == "cold"
    assert Catalogue(a_fleet(["m"], a_replica("failed"), a_replica("loading"))).state("m") == "loading"
    assert Catalogue(a_fleet(["m"], a_replica("loading"), a_replica("ready"))).state("m") == "ready"


def test_the_tightest_context_counts() -> None:
    info = Catalogue(a_fleet(["m"], a_replica("ready", context_limit=8), a_replica("ready", context_limit=4))).info("m")
    assert info.context_limit == 4


PLAIN = {"modalities": {"input": ["text"], "output": ["text"]}, "object": "model", "owned_by": "plexus", "type": "llm"}


def test_a_listing_has_openais_shape_and_the_state() -> None:
    catalogue = Catalogue(
        a_fleet(["m", "a"], a_replica("ready", "1", context_limit=64), a_replica("loading", "2", stage="read"))
    )
    body = orjson.loads(models.listing(catalogue.listing()))
    assert body["object"] == "list"
    limits = dict.fromkeys(("context_limit", "max_model_len", "context_length"), 64)
    assert body["data"] == [
        {"id": "a", "created": 5, "state": "cold", "workers": [], **PLAIN},
        {"id": "m", "created": 5, "state": "ready", "workers": ["w-1"], **limits, **PLAIN},
    ]


def test_an_alias_is_an_entry_of_its_own_and_resolves() -> None:
    catalogue = Catalogue(a_fleet([ModelRecord(id="m", source="s", aliases=["fast", "gpt-4o"])], a_replica("ready")))
    assert [(info.id, info.alias_of, info.state) for info in catalogue.listing()] == [
        ("fast", "m", "ready"),
        ("gpt-4o", "m", "ready"),
        ("m", "", "ready"),
    ]
    assert catalogue.require("gpt-4o").id == "m"
    assert orjson.loads(models.one(catalogue.info("fast")))["alias_of"] == "m"
    assert orjson.loads(models.one(catalogue.info("m")))["aliases"] == ["fast", "gpt-4o"]
    with pytest.raises(ModelNotFound, match="did you mean gpt-4o"):
        catalogue.require("gpt-4")


def test_an_id_goes_before_an_alias_and_the_first_model_has_a_shared_one() -> None:
    records = [ModelRecord(id=name, source="s", aliases=["a", "both"]) for name in ("c", "b", "a")]
    catalogue = Catalogue(a_fleet(records))
    assert [catalogue.require(name).id for name in ("a", "both", "c")] == ["a", "a", "c"]
    assert [info.id for info in catalogue.listing()] == ["a", "b", "both", "c"]


def test_a_model_is_asked_for_what_it_is_made_for() -> None:
    catalogue = Catalogue(a_fleet([ModelRecord(id="e", source="s", task="embed"), ModelRecord(id="m", source="s")]))
    assert catalogue.require("e", "embed").id == "e"
    for model, task in (("e", "generate"), ("m", "embed")):
        with pytest.raises(InvalidRequest, match="/v1/") as refused:
            catalogue.require(model, task)  # type: ignore[arg-type]
        assert refused.value.param == "model"


def test_what_is_known_of_a_model_is_shown() -> None:
    record = ModelRecord(
        id="m", source="s", description="d", cost={"input": 0.5}, capabilities={"tools": False, "vision": True}
    )
    found = {"tools": True, "reasoning": True}
    entry = orjson.loads(models.one(Catalogue(a_fleet([record], a_replica("ready", capabilities=found))).info("m")))
    assert entry["capabilities"] == {"tools": False, "reasoning": True, "vision": True}
    assert (entry["description"], entry["cost"], entry["modalities"]["input"]) == (
        "d",
        {"input": 0.5},
        ["text", "image"],
    )
    embedder = ModelRecord(id="e", source="s", task="embed")
    assert orjson.loads(models.one(Catalogue(a_fleet([embedder])).info("e")))["modalities"]["output"] == ["embedding"]


def test_a_model_that_no_worker_can_hold_says_so() -> None:
    def a_worker(name: str, kind: Literal["", "does_not_fit"]) -> WorkerRecord:
        failure = Failure(model="m", reason="needs 9 GB", at_s=0.0, kind=kind)
        return WorkerRecord(name=name, incarnation="i", host="h", failures=[failure])

    small = [a_worker("a", "does_not_fit"), a_worker("b", "does_not_fit")]
    info = Catalogue(a_fleet(["m"], workers=small)).info("m")
    assert (info.state, info.reason) == ("cannot_fit", "needs 9 GB")
    assert Catalogue(a_fleet(["m"], workers=[*small, a_worker("c", "")])).info("m").state == "cold"
    assert Catalogue(a_fleet(["m"], a_replica("ready"), workers=small)).info("m").state == "ready"
    only = ModelRecord(id="m", source="s", workers=["a"])
    assert Catalogue(a_fleet([only], workers=[small[0], a_worker("c", "")])).info("m").state == "cannot_fit"


def test_progress_and_failures_are_shown() -> None:
    loading = Catalogue(a_fleet(["m"], a_replica("loading", stage="download", done_bytes=5, total_bytes=9)))
    assert orjson.loads(models.one(loading.info("m")))["loading"] == {
        "stage": "download",
        "done_bytes": 5,
        "total_bytes": 9,
    }
    failed = Catalogue(a_fleet(["m"], a_replica("failed", reason="does not fit")))
    assert orjson.loads(models.one(failed.info("m")))["reason"] == "does not fit"


def test_a_wait_for_a_load_is_estimated_and_told_apart() -> None:
    loading = a_replica("loading", since_s=100.0)
    assert Catalogue(a_fleet(["m"], loading), wall=lambda: 104.0).load_left_s("m") == 6.0
    assert Catalogue(a_fleet(["m"], loading), wall=lambda: 150.0).load_left_s("m") == 0.0
    assert Catalogue(a_fleet(["m"]), wall=lambda: 150.0).load_left_s("m") == 10.0
    ready = Catalogue(a_fleet(["m"], a_replica("ready", since_s=100.0, load_s=9.0)), wall=lambda: 120.0)
    assert ready.load_left_s("m") is None
    assert ready.load_waited_s("r", 15.0) == 4.0  # it began at 105, and the replica was ready at 109
    assert ready.load_waited_s("r", 5.0) == 0.0
    assert ready.load_waited_s("another", 15.0) == 0.0
