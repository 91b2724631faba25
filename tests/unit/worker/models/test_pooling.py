"""What sentence-transformers files say of a model's vectors."""

import json
from pathlib import Path
from typing import Any

import pytest

from worker.models.errors import NotServable
from worker.models.files import choose
from worker.models.pooling import Pooling, embedding_context, read_pooling

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 9, "max_position_embeddings": 512}  # fmt: skip


def a_model(path: Path, *modules: str, config: dict[str, Any] | None = None, **pooling: Any) -> Path:
    (path / "config.json").write_text(json.dumps(config or BERT))
    if modules:
        parts = [
            {"idx": index, "path": f"{index}_{name}" if index else "", "type": f"sentence_transformers.models.{name}"}
            for index, name in enumerate(modules)
        ]
        (path / "modules.json").write_text(json.dumps(parts))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    return path


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_pooling_is_read(tmp_path: Path, flags: dict[str, Any], kind: Any) -> None:
    assert read_pooling(a_model(tmp_path, "Transformer", "Pooling", **flags)) == Pooling(kind, normalize=False)


def test_dense_layers_and_the_normalisation_are_read(tmp_path: Path) -> None:
    path = a_model(tmp_path, "Transformer", "Pooling", "Dense", "Normalize", pooling_mode_mean_tokens=True)
    assert read_pooling(path) == Pooling("mean", normalize=True, dense=("2_Dense",))


def test_without_files_the_architecture_decides(tmp_path: Path) -> None:
    path = a_model(tmp_path)
    assert read_pooling(path) == Pooling("mean", normalize=True)
    (path / "config.json").write_text(json.dumps({**BERT, "architectures": ["Qwen3ForCausalLM"]}))
    assert read_pooling(path) == Pooling("last", normalize=True)
    assert read_pooling(path, {"pooling": "cls", "normalize": False}) == Pooling("cls", normalize=False)


@pytest.mark.parametrize(
    ("modules", "flags"),
    [
        (("Transformer", "Pooling"), {"pooling_mode_weightedmean_tokens": True}),
        (("Transformer", "Pooling"), {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
        (("Transformer", "Pooling"), {}),
        (("Transformer", "Pooling", "SpladePooling"), {"pooling_mode_mean_tokens": True}),
        (("Transformer",), {}),
    ],
)
def test_what_is_not_served_is_refused(tmp_path: Path, modules: tuple[str, ...], flags: dict[str, Any]) -> None:
    with pytest.raises(NotServable):
        read_pooling(a_model(tmp_path, *modules, **flags))


@pytest.mark.parametrize("options", [{"pooling": "median"}, {"normalize": "yes"}])
def test_options_are_checked(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(NotServable, match="options"):
        read_pooling(a_model(tmp_path), options)


def test_the_least_limit_counts(tmp_path: Path) -> None:
    path = a_model(tmp_path)
    assert embedding_context(path) == 512
    (path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert embedding_context(path) == 256
    assert embedding_context(path, 64) == 64
    assert embedding_context(path, 999) == 256


def test_positions_after_the_padding_id_do_not_count(tmp_path: Path) -> None:
    roberta = {**BERT, "model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert embedding_context(a_model(tmp_path, config=roberta)) == 512


def test_the_files_of_the_modules_are_fetched() -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"]
    names += ["2_Dense/config.json", "2_Dense/model.safetensors"]
    assert choose([*names, "onnx/model.onnx", "openvino/config.json", "2_Dense/pytorch_model.bin"], "x") == sorted(
        names
    )
