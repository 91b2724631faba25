"""Near names and states of models."""

from types import SimpleNamespace
from typing import Any, Literal, cast

import orjson
import pytest

from gateway.catalogue import Catalogue
from gateway.dialects import models
from gateway.errors import ModelNotFound
from shared.fleet import Fleet
from shared.records import ModelRecord, ReplicaRecord


def a_fleet(names: list[str], *replicas: ReplicaRecord) -> Fleet:
    return cast(
        Fleet,
        SimpleNamespace(
            models={name: ModelRecord(id=name, source="s", created_s=5.5) for name in names},
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


def test_a_listing_has_openais_shape_and_the_state() -> None:
    catalogue = Catalogue(
        a_fleet(["m", "a"], a_replica("ready", "1", context_limit=64), a_replica("loading", "2", stage="read"))
    )
    body = orjson.loads(models.listing(catalogue.listing()))
    assert body["object"] == "list"
    assert body["data"] == [
        {"id": "a", "object": "model", "created": 5, "owned_by": "plexus", "state": "cold", "workers": []},
        {
            "id": "m",
            "object": "model",
            "created": 5,
            "owned_by": "plexus",
            "state": "ready",
            "workers": ["w-1"],
            "context_limit": 64,
            "max_model_len": 64,
        },
    ]


def test_progress_and_failures_are_shown() -> None:
    loading = Catalogue(a_fleet(["m"], a_replica("loading", stage="download", done_bytes=5, total_bytes=9)))
    assert orjson.loads(models.one(loading.info("m")))["loading"] == {
        "stage": "download",
        "done_bytes": 5,
        "total_bytes": 9,
    }
    failed = Catalogue(a_fleet(["m"], a_replica("failed", reason="does not fit")))
    assert orjson.loads(models.one(failed.info("m")))["reason"] == "does not fit"
