"""Equal replicas have equal fingerprints, unlike ones do not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.models.test_weights import write
from worker.models.fingerprint import fingerprint

BASE: dict[str, Any] = {"backend": "torch", "dtype": "float32", "device_kind": "cpu", "version": "2.13.0+cpu"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "transformers_version": "5.23.0"}))
    write(tmp_path / "model.safetensors", {"a": ("F32", [4], 16)})
    return tmp_path


@pytest.mark.parametrize(
    "change", [{"backend": "synthetic"}, {"dtype": "bfloat16"}, {"device_kind": "cuda"}, {"version": "2.12.1"}]
)
def test_each_part_counts(model: Path, change: dict[str, Any]) -> None:
    assert fingerprint(model, **BASE) != fingerprint(model, **(BASE | change))


def test_patch_versions_and_who_saved_it_do_not_count(model: Path) -> None:
    first = fingerprint(model, **BASE)
    (model / "config.json").write_text(json.dumps({"transformers_version": "5.0.0", "model_type": "qwen3"}))
    assert fingerprint(model, **(BASE | {"version": "2.13.7"})) == first
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert fingerprint(model, **BASE) != first
