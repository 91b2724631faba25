"""A model's eyes by its files: what published ones say, what is refused by name, what it costs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.vision import make_vision_checkpoint
from worker.models.errors import NotServable
from worker.models.image_layout import Area, Edge, Fixed, Tiles
from worker.models.plan import plan
from worker.models.vision import Vision, read_vision

# As published, as far as it matters.
QWEN2_VL = {
    "model_type": "qwen2_vl",
    "image_token_id": 151655,
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584, "patch_size": 14},
}
QWEN2_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
QWEN3_VL = {
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
}
QWEN3_PIXELS = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "merge_size": 2}
LLAVA = {
    "model_type": "llava",
    "image_token_index": 32000,
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
    "vision_feature_select_strategy": "default",
}
CLIP = {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "size": {"shortest_edge": 336}}
MISTRAL = {
    "model_type": "mistral3",
    "image_token_index": 10,
    "spatial_merge_size": 2,
    "vision_config": {"model_type": "pixtral", "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24},
}
SMOL = {
    "model_type": "smolvlm",
    "image_token_id": 49190,
    "scale_factor": 4,
    "vision_config": {"image_size": 512, "patch_size": 16, "hidden_size": 768},
}
SMOL_PIXELS = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}, "do_image_splitting": True}


def read(path: Path, config: dict[str, Any], pixels: dict[str, Any] | None = None, **options: Any) -> Vision | None:
    (path / "config.json").write_text(json.dumps(config))
    if pixels is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(pixels))
    return read_vision(path, options)


@pytest.mark.parametrize(
    ("config", "pixels", "rule"),
    [
        (QWEN2_VL, QWEN2_PIXELS, Area(28, 3136, 2048 * 28**2)),
        (QWEN3_VL, QWEN3_PIXELS, Area(32, 65536, 2048 * 32**2)),
        (LLAVA, CLIP, Fixed(24, 24)),
        (LLAVA | {"vision_feature_select_strategy": "full"}, CLIP, Fixed(1, 577)),
        (MISTRAL, {"size": {"longest_edge": 1540}}, Edge(28, 1540, "[IMG_BREAK]", "[IMG_END]")),
        (SMOL, SMOL_PIXELS, Tiles(512, 2048, 64)),
    ],
    ids=["qwen2_vl", "qwen3_vl", "llava", "llava-full", "mistral3", "smolvlm"],
)
def test_published_models(tmp_path, config, pixels, rule):
    found = read(tmp_path, config, pixels)
    assert found is not None and found.rule == rule
    assert found.turns == config["model_type"].startswith("qwen")
    assert found.levels == (4 if config["model_type"] == "qwen3_vl" else 1)


def test_settings_within_those_of_the_whole_processor(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": QWEN3_PIXELS}))
    found = read(tmp_path, QWEN3_VL)
    assert found is not None and found.rule == Area(32, 65536, 2048 * 32**2)


def test_the_option_bounds_an_image(tmp_path):
    for config, pixels in ((QWEN2_VL, QWEN2_PIXELS), (MISTRAL, {"size": {"longest_edge": 1540}}), (SMOL, SMOL_PIXELS)):
        found = read(tmp_path, config, pixels, image_tokens=400)
        assert found is not None and 256 <= found.max_tokens <= 400
        assert max(sum(found.layout(*size).runs) for size in ((3000, 3000), (900, 3000))) <= 400
    with pytest.raises(NotServable, match="image_tokens"):
        read(tmp_path, QWEN2_VL, QWEN2_PIXELS, image_tokens="many")


def test_what_is_not_served(tmp_path):
    eyes: dict[str, Any] = {"vision_config": {}}
    assert read(tmp_path, {"model_type": "llama"}) is None
    assert read(tmp_path, {"model_type": "gemma3"} | eyes) is None  # its text is
    for name in ("paligemma", "llava_next"):
        with pytest.raises(NotServable, match=name):
            read(tmp_path, {"model_type": name} | eyes)
    with pytest.raises(NotServable, match="both directions"):
        read(tmp_path, {"model_type": "paligemma"} | eyes)
    with pytest.raises(NotServable, match="aimv2"):
        read(tmp_path, LLAVA | {"vision_config": {"model_type": "aimv2_vision_model"}}, CLIP)
    with pytest.raises(NotServable, match="image_token_id"):
        read(tmp_path, {"model_type": "qwen2_vl"} | eyes, QWEN2_PIXELS)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(NotServable, match="preprocessor_config"):
        read(tmp_path, QWEN2_VL)


def test_the_plan_counts_tower_and_images(tmp_path):
    from worker.models.load import read_config

    path = make_vision_checkpoint(tmp_path, "qwen3_vl")

    def planned(**options: Any) -> Any:
        return plan(
            path,
            dtype="float32",
            device_kind="cpu",
            memory_bytes=4 << 30,
            block_tokens=32,
            slots=4,
            prefill_tokens=64,
            config=read_config(path).to_dict(),
            options=options,
        )

    vision = read_vision(path, {}, read_config(path).to_dict())
    assert vision is not None and vision.max_tokens == 24
    usual, small = planned(), planned(image_tokens=6)
    assert usual.tower_bytes == vision.activation_bytes(4) > small.tower_bytes > 0
    kept = 4 * 24 * 3 * 64 * 4  # slots, tokens, levels, width, float32
    read = 4 * 24 * 3 * 64 * 2 * 4  # slots, tokens, colours, pixels of a token, frames, float32
    assert usual.fixed_bytes - small.fixed_bytes == (kept + read) * 3 // 4
