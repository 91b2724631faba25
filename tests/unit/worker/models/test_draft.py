"""Which draft model is loaded, what it takes, and which is refused."""

import json
from pathlib import Path

import msgspec
import pytest

from shared.records import ModelRecord
from tests.support.tiny import write_tokenizer
from tests.unit.worker.models.test_plan import QWEN3, make, model
from worker.agent import fetching, sizing
from worker.agent.fetching import with_draft
from worker.models.draft import check_vocabularies, draft_path
from worker.models.errors import DoesNotFit, DraftMismatch


def directory(path: Path, **changes: int) -> Path:
    path.mkdir()
    return model(path, QWEN3 | changes)


def test_the_option_names_it_where_it_is_of_use() -> None:
    options = {"draft": "/m"}
    assert draft_path(options, "cpu") == Path("/m")
    assert draft_path({}, "cpu") is None
    assert draft_path(options | {"speculate": False}, "cpu") is None
    assert draft_path(options, "cuda") is None
    assert draft_path(options | {"cuda": False}, "cuda") == Path("/m")


def test_its_weights_and_its_cache_are_counted(tmp_path: Path) -> None:
    large, small = directory(tmp_path / "large"), directory(tmp_path / "small", num_hidden_layers=1)
    alone, both = make(large, 1 << 30), make(large, 1 << 30, draft=small)
    assert both.weights_bytes == alone.weights_bytes + 200_080
    assert both.draft_bytes == 200_080
    assert both.block_bytes == alone.block_bytes * 4 // 3
    assert both.total_bytes > alone.total_bytes + alone.cache_bytes // 4
    least = alone.bytes_with(2048 // 32)
    make(large, least)
    with pytest.raises(DoesNotFit):
        make(large, least, draft=small)


def test_a_wider_step_of_the_draft_model_is_what_is_kept_free(tmp_path: Path) -> None:
    large, small = directory(tmp_path / "large"), directory(tmp_path / "small", intermediate_size=200_000)
    assert make(large, 4 << 30, draft=small).activation_bytes > 2 * make(large, 4 << 30).activation_bytes


def test_the_agent_reserves_and_estimates_for_both(tmp_path: Path) -> None:
    large, small = directory(tmp_path / "large"), directory(tmp_path / "small")
    plain = ModelRecord(id="m", source=str(large))
    drafted = msgspec.structs.replace(plain, options={"draft": str(small)})
    wanted = [
        sizing.size(large, one, device_kind="cpu", available_bytes=1 << 40, slots=2, prefill_tokens=64).memory_bytes
        for one in (plain, drafted)
    ]
    assert wanted[1] > wanted[0] + 200_080
    known = [sizing.estimate(large, one, device_kind="cpu", slots=2, prefill_tokens=64) for one in (plain, drafted)]
    assert known[1].weights_bytes == 2 * known[0].weights_bytes
    assert known[1].kv_bytes_per_token == 2 * known[0].kv_bytes_per_token


async def test_its_source_is_fetched_like_any_other(tmp_path: Path) -> None:
    asked = []

    async def fetch_one(one: ModelRecord) -> Path:
        asked.append((one.source, one.revision))
        return tmp_path / "there"

    record = ModelRecord(id="m", source="org/large", revision="v2", options={"draft": "org/small", "path": "fast"})
    made = await with_draft(record, fetch_one)
    assert made.options == {"draft": str(tmp_path / "there"), "path": "fast"}
    assert (made.source, record.options["draft"], asked) == ("org/large", "org/small", [("org/small", "")])
    assert await with_draft(made := ModelRecord(id="m", source="org/large"), fetch_one) is made
    assert len(asked) == 1


async def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    record = ModelRecord(id="m", source="org/large", options={"draft": str(tmp_path / "nothing")})
    with pytest.raises(fetching.FetchFailed, match="no directory"):
        await with_draft(record, lambda one: fetching.fetch(one, lambda done, total: None))


def test_another_vocabulary_is_refused_with_its_first_difference(tmp_path: Path) -> None:
    for name, style in (("one", "qwen3"), ("same", "qwen3"), ("other", "llama3")):
        write_tokenizer(tmp_path / name, style)
        (tmp_path / name / "config.json").write_text(json.dumps(QWEN3))
    check_vocabularies(tmp_path / "one", tmp_path / "same")
    with pytest.raises(DraftMismatch, match=r"token 384 is .*begin_of_text.* there and .*endoftext") as caught:
        check_vocabularies(tmp_path / "one", tmp_path / "other")
    assert caught.value.id == 384
    assert "leave the option `draft` out" in str(caught.value)
