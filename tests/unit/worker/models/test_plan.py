"""Dividing a grant of memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.models.test_weights import write
from worker.models.errors import DoesNotFit, NotServable
from worker.models.plan import FIXED_BYTES, fit, plan, resolve_dtype
from worker.models.shape import read_shape

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 448,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}


def model(path: Path, config: dict[str, Any] = QWEN3) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    write(path / "model.safetensors", {"w": ("BF16", [1000, 100], 200_000), "position": ("I64", [10], 80)})
    return path


def make(path: Path, memory_bytes: int, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "dtype": "auto",
        "device_kind": "cpu",
        "block_tokens": 32,
        "slots": 4,
        "prefill_tokens": 128,
    }
    return plan(path, memory_bytes=memory_bytes, **(values | changes))


def test_the_parts_of_a_plan(tmp_path: Path) -> None:
    made = make(model(tmp_path), 1 << 30)
    assert made.dtype == "bfloat16"
    assert made.weights_bytes == 200_080
    assert made.block_bytes == 2 * 2 * 32 * 2 * 3 * 32  # keys and values, kv heads, head_dim, item, layers, tokens
    assert made.fixed_bytes == FIXED_BYTES["cpu"]
    assert made.num_blocks == 4 * 4096 // 32  # as much as the slots can fill
    assert made.context_limit == 4096
    assert made.total_bytes <= 1 << 30


def test_a_wider_dtype_doubles_weights_and_cache(tmp_path: Path) -> None:
    narrow, wide = make(model(tmp_path), 1 << 30), make(tmp_path, 1 << 30, dtype="float32")
    assert wide.weights_bytes - 80 == 2 * (narrow.weights_bytes - 80)
    assert wide.block_bytes == 2 * narrow.block_bytes


def test_small_memory_means_a_shorter_context(tmp_path: Path) -> None:
    whole = make(model(tmp_path), 1 << 30)
    memory = whole.total_bytes - whole.cache_bytes + 100 * whole.block_bytes + 17
    small = make(tmp_path, memory)
    assert (small.num_blocks, small.context_limit) == (100, 3200)
    assert small.total_bytes <= memory


def test_below_the_floor_it_does_not_fit_and_says_by_how_much(tmp_path: Path) -> None:
    whole = make(model(tmp_path), 1 << 30)
    rest = whole.total_bytes - whole.cache_bytes
    assert make(tmp_path, rest + 64 * whole.block_bytes).context_limit == 2048
    with pytest.raises(DoesNotFit, match="for a context of 2048 tokens") as caught:
        make(tmp_path, rest + 64 * whole.block_bytes - 1)
    assert caught.value.needed_bytes - caught.value.granted_bytes == 1
    assert sum(caught.value.parts.values()) == caught.value.needed_bytes
    assert "grant more memory" in str(caught.value)


def test_a_wanted_limit_lowers_floor_and_cap_but_never_raises_the_models(tmp_path: Path) -> None:
    made = make(model(tmp_path), 1 << 30, context_limit=256)
    assert (made.context_limit, made.num_blocks) == (256, 4 * 8)
    assert make(tmp_path, made.total_bytes - 24 * made.block_bytes, context_limit=256).num_blocks == 8
    assert make(tmp_path, 1 << 30, context_limit=1 << 20).context_limit == 4096


def test_limits_that_are_no_multiple_of_a_block() -> None:
    sizes = {"dtype": "float32", "weights": 0, "activation": 0, "fixed": 0, "block_bytes": 10, "block_tokens": 32}
    made = fit(**sizes, memory_bytes=1000, slots=2, context_limit=33)  # type: ignore[arg-type]
    assert (made.num_blocks, made.context_limit) == (4, 33)


@pytest.mark.parametrize(
    ("wanted", "stored", "device", "dtype"),
    [
        ("auto", "bfloat16", "cpu", "bfloat16"),
        ("auto", "float16", "cpu", "float32"),
        ("auto", "float16", "cuda", "float16"),
        ("float16", "bfloat16", "cpu", "float16"),
        ("auto", "", "cpu", "float32"),
        ("auto", "float8_e4m3fn", "cuda", "bfloat16"),
        ("float32", "bfloat16", "cuda", "float32"),
    ],
)
def test_dtypes(wanted: str, stored: str, device: str, dtype: str) -> None:
    assert resolve_dtype(wanted, stored, device) == dtype


@pytest.mark.parametrize(
    ("config", "kv_items", "context"),
    [
        ({"num_key_value_heads": None, "head_dim": None}, 2 * 64, 4096),  # neither given: every head, hidden/heads
        ({"multi_query": True}, 2 * 32, 4096),
        (
            {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20},
            4 * (24 + 20),  # latent attention, expanded
            4096,
        ),
        ({"max_position_embeddings": None}, 2 * 2 * 32, 777),  # the tokeniser's
    ],
)
def test_shapes_of_families(tmp_path: Path, config: dict[str, Any], kv_items: int, context: int) -> None:
    values = {name: value for name, value in (QWEN3 | config).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 777}')
    shape = read_shape(tmp_path)
    assert (shape.kv_items, shape.context_limit) == (kv_items, context)


def test_the_text_part_of_a_multimodal_configuration_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": QWEN3, "vision_config": {"hidden_size": 1}})
    )
    shape = read_shape(tmp_path)
    assert (shape.hidden, shape.layers, shape.model_type, shape.dtype) == (64, 3, "gemma3", "bfloat16")


def test_what_a_family_leaves_out_is_known(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    shape = read_shape(tmp_path)
    assert (shape.kv_items, shape.context_limit, shape.vocab) == (2 * 4 * 256, 131_072, 262_208)


def test_older_words_are_understood(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": 448}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path)
    assert (shape.kv_items, shape.ffn, shape.context_limit) == (2 * 64, 256, 512)


def test_a_configuration_that_does_not_tell_is_refused_unless_completed(tmp_path: Path) -> None:
    config = {name: value for name, value in QWEN3.items() if name != "num_hidden_layers"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotServable, match="does not state num_hidden_layers"):
        read_shape(tmp_path)
    assert read_shape(tmp_path, QWEN3).layers == 3


def test_quantised_weights_are_smaller_and_made_from_their_files(tmp_path: Path) -> None:
    model(tmp_path)
    tensors = {"layer.weight": ("BF16", [1000, 50_000], 100_000_000), "embed_tokens.weight": ("BF16", [10, 10], 200)}
    write(tmp_path / "model.safetensors", tensors)
    plain, int8, int4 = (make(tmp_path, 2 << 30, quantization=kind) for kind in ("", "int8", "int4"))
    assert plain.weights_bytes == 100_000_200
    assert int8.weights_bytes == 50_000_000 + 8000 + 200  # with a scale a row; what is looked up stays as it is
    assert int4.weights_bytes < int8.weights_bytes
    assert plain.loading_bytes == 0
    # What stays, and the largest one as it is stored and as it is packed.
    assert int8.loading_bytes == int8.weights_bytes + 2 * 100_000_000 + FIXED_BYTES["cpu"]
    assert int4.loading_bytes == int4.weights_bytes + 2 * 100_000_000 + FIXED_BYTES["cpu"]
    wide = make(tmp_path, 2 << 30, quantization="int8", dtype="float32")  # converted first, so whole
    assert wide.loading_bytes == 200_000_400 + 2 * 200_000_000 + FIXED_BYTES["cpu"]
    assert int4.bytes_with(1) == int4.loading_bytes
    with pytest.raises(DoesNotFit, match="weights while they are quantised 231 MB"):
        make(tmp_path, int4.loading_bytes - 1, quantization="int4")
