"""What config.json and the image processor's settings say about a model's eyes: which family, and an image's tokens.

No torch and no pixels: a front counts the tokens of an image from its width and height, and a plan knows what the
largest one costs. Families that are not here are refused by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models.errors import NotServable
from worker.models.files import CONFIG, read_json
from worker.models.image_layout import Area, Edge, Fixed, Layout, Rule, Tiles

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "idefics3", "smolvlm")
IMAGE_TOKENS = 2048  # of one image at most, where the family leaves it open; the option `image_tokens` says otherwise
FEATURE_BYTES = 256 << 20  # of images whose embeddings are kept, for turns that show them again
PIXEL_BYTES = 256 << 20  # of images that are ready for the tower and wait
_WITH_CLASS = ("clip_vision_model",)  # towers whose first output is of no patch
_TOWERS = (*_WITH_CLASS, "siglip_vision_model", "pixtral")  # of llava models
_BOTH_WAYS = "an image's tokens see each other in both directions there"
_REASONS = {
    "gemma3": _BOTH_WAYS,
    "gemma3n": _BOTH_WAYS,
    "gemma4": _BOTH_WAYS,
    "paligemma": "the whole prompt is seen in both directions there",
    "mllama": "its images are read by cross-attention",
    "llama4": "its attention is chunked, and its image processor needs torchvision",
}
# Whose text is not served either: transformers has no class for it alone. Newer ones are found out by the rank.
_ONLY_SEEING = (
    "aria", "aya_vision", "blip-2", "cohere2_vision", "deepseek_vl", "deepseek_vl_hybrid", "ernie4_5_vl_moe",
    "fast_vlm", "florence2", "glm46v", "glm4v", "glm4v_moe", "idefics", "idefics2", "instructblip", "internvl", "janus",
    "kosmos-2", "kosmos-2.5", "lfm2_vl", "llava_next", "llava_next_video", "llava_onevision", "molmo2", "ovis2",
    "paddleocr_vl", "paligemma", "perception_lm", "qwen3_vl_moe", "shieldgemma2", "video_llama_3", "video_llava",
    "vipllava",
)  # fmt: skip
_TOWER_NAMES = ("vision_tower.", "visual.", "multi_modal_projector.", "vision_model.", "connector.")


@dataclass(frozen=True, slots=True)
class Vision:
    """A model's eyes."""

    family: str
    token_id: int  # stands for a part of an image in a prompt
    rule: Rule  # how images are laid out
    patches: int = 1  # that the tower sees for each token
    values: int = 0  # numbers that it reads for each token
    hidden: int = 0  # width of the tower
    ffn: int = 0
    kept: int = 0  # of its layers, how many outputs are kept while it runs
    has_mask: bool = False  # it keeps one of patches by patches
    levels: int = 1  # embeddings of a token: its own, and those added in later layers
    turns: bool = False  # positions have three parts: time, row, column

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest image."""
        return self.rule.max_tokens

    def layout(self, width: int, height: int) -> Layout:
        """How an image of so many pixels stands in a prompt. Raises TooLopsided."""
        return self.rule.layout(width, height)

    def activation_bytes(self, item_bytes: int) -> int:
        """Peak of the tower over the largest image."""
        rows = self.max_tokens * self.patches + 1
        width = 8 * self.hidden + 3 * self.ffn + self.kept * self.hidden + (rows if self.has_mask else 0)
        return rows * width * item_bytes

    def feature_bytes(self, hidden: int, item_bytes: int, slots: int) -> int:
        """For embeddings that are kept, of a model of this width: of an image for each slot, up to a bound."""
        largest = self.max_tokens * self.levels * hidden * item_bytes
        return max(largest, min(FEATURE_BYTES, slots * largest))

    def pixel_bytes(self, slots: int) -> int:
        """The same for what waits for the tower, in the host's memory."""
        largest = self.max_tokens * self.values * 4
        return max(largest, min(PIXEL_BYTES, slots * largest))


def is_of_tower(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to the tower or to what joins it to the language model."""
    return name.removeprefix("model.").startswith(_TOWER_NAMES)


def has_eyes(config: Mapping[str, Any]) -> bool:
    """Whether the model could take images, as far as its configuration tells."""
    return isinstance(config.get("vision_config"), Mapping)


def serves_eyes(config: Mapping[str, Any]) -> bool:
    """Whether images of such a model are served."""
    return config.get("model_type") in FAMILIES


def refusal(config: Mapping[str, Any]) -> str:
    """Why images of such a model are not served."""
    kind = str(config.get("model_type"))
    reason = _REASONS.get(kind, "nobody has compared it with its own results here")
    return f"images of models of type {kind} are not supported: {reason}; those of {', '.join(FAMILIES)} are"


def read_vision(
    path: Path, options: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None
) -> Vision | None:
    """The eyes of the model in `path`; None for one without, or one of which only the text is served.

    `options` are the model's; `config` is the complete configuration where the caller has it. Raises NotServable for
    a family that is not served at all, and for files that do not tell what they must.
    """
    outer = dict(config) if config is not None else read_json(path / CONFIG)
    if not has_eyes(outer):
        return None
    if outer.get("model_type") in _ONLY_SEEING:
        raise NotServable(f"{path}: {refusal(outer)}")
    if not serves_eyes(outer):
        return None
    eyes, processor = outer["vision_config"], _processor(path)
    token = outer.get("image_token_id", outer.get("image_token_index"))
    if not isinstance(token, int):
        raise NotServable(f"{path / CONFIG} names no image_token_id; add it from the model's family")
    bound = (options or {}).get("image_tokens") or None
    if bound is not None and (not isinstance(bound, int) or bound < 1):
        raise NotServable(f"the option image_tokens of {path} must be a number of tokens, not {bound!r}")
    match outer["model_type"]:
        case "llava" if eyes.get("model_type") != "pixtral":
            return _llava(path, outer, eyes, processor, token)
        case "llava" | "mistral3":
            return _pixtral(path, outer, eyes, processor, token, bound)
        case "idefics3" | "smolvlm":
            return _idefics(outer, eyes, processor, token, bound)
    return _qwen(str(outer["model_type"]), eyes, processor, token, bound)


def _llava(
    path: Path, config: Mapping[str, Any], eyes: Mapping[str, Any], processor: Mapping[str, Any], token: int
) -> Vision:
    tower = eyes.get("model_type", "clip_vision_model")
    if tower not in _TOWERS:
        raise NotServable(
            f"{path} is a llava model with a tower of type {tower}, which is not supported; {', '.join(_TOWERS)} are"
        )
    height, width = _fixed_size(processor, int(eyes.get("image_size", 336)))
    patch = int(eyes.get("patch_size", 14))
    rows, columns = height // patch, width // patch
    others = 1 if tower in _WITH_CLASS else 0
    if config.get("vision_feature_select_strategy", "default") == "default":
        others -= 1
    hidden = int(eyes.get("hidden_size", 1024))
    return Vision(
        family="llava",
        token_id=token,
        rule=Fixed(rows, columns) if not others else Fixed(1, rows * columns + others),
        values=3 * patch**2,
        hidden=hidden,
        ffn=int(eyes.get("intermediate_size", 4 * hidden)),
        kept=int(eyes.get("num_hidden_layers", 24)) + _num_layers_read(config),
    )


def _qwen(family: str, eyes: Mapping[str, Any], processor: Mapping[str, Any], token: int, bound: int | None) -> Vision:
    default_patch = 16 if family == "qwen3_vl" else 14
    merge = int(eyes.get("spatial_merge_size", 2))
    side = int(processor.get("patch_size") or eyes.get("patch_size", default_patch)) * merge
    size = _mapping(processor.get("size"))
    least = int(processor.get("min_pixels") or size.get("shortest_edge") or 56 * 56)
    most = int(processor.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280)
    most = min(most, (bound or IMAGE_TOKENS) * side**2)
    hidden = int(eyes.get("embed_dim") or eyes.get("hidden_size", 1280))
    ffn = eyes.get("intermediate_size") or float(eyes.get("mlp_ratio", 4)) * hidden
    return Vision(
        family=family,
        token_id=token,
        rule=Area(side, min(least, most), most),
        patches=merge**2,
        values=3 * side**2 * int(eyes.get("temporal_patch_size", 2)),
        hidden=hidden,
        ffn=int(ffn),
        levels=1 + len(eyes.get("deepstack_visual_indexes", (0, 0, 0)) if family == "qwen3_vl" else ()),
        turns=True,
    )


def _pixtral(
    path: Path,
    config: Mapping[str, Any],
    eyes: Mapping[str, Any],
    processor: Mapping[str, Any],
    token: int,
    bound: int | None,
) -> Vision:
    merge = int(config.get("spatial_merge_size", 2)) if config["model_type"] == "mistral3" else 1
    patch = int(eyes.get("patch_size", 16))
    side = patch * merge
    longest = int(_mapping(processor.get("size")).get("longest_edge", 1024))
    if bound is not None:
        longest = min(longest, side * max(1, math.isqrt(bound)))
    file = path / "processor_config.json"
    words = read_json(file) if file.is_file() else {}
    hidden = int(eyes.get("hidden_size", 1024))
    return Vision(
        family="mistral3" if config["model_type"] == "mistral3" else "llava",
        token_id=token,
        rule=Edge(
            side,
            longest,
            str(words.get("image_break_token", "[IMG_BREAK]")),
            str(words.get("image_end_token", "[IMG_END]")),
        ),
        patches=merge**2,
        values=3 * side**2,
        hidden=hidden,
        ffn=int(eyes.get("intermediate_size", 4 * hidden)),
        kept=int(eyes.get("num_hidden_layers", 24)) + _num_layers_read(config),
        has_mask=True,
    )


def _idefics(
    config: Mapping[str, Any], eyes: Mapping[str, Any], processor: Mapping[str, Any], token: int, bound: int | None
) -> Vision:
    scale = int(config.get("scale_factor", 2))
    size, patch = int(eyes.get("image_size", 224)), int(eyes.get("patch_size", 32))
    tokens = (size // patch) ** 2 // scale**2
    tile = int(_mapping(processor.get("max_image_size")).get("longest_edge", size))
    longest = int(_mapping(processor.get("size")).get("longest_edge", 4 * tile))
    if bound is not None:
        longest = min(longest, tile * max(1, math.isqrt(max(0, bound // tokens - 1))))
    hidden = int(eyes.get("hidden_size", 1152))
    return Vision(
        family=str(config["model_type"]),
        token_id=token,
        rule=Tiles(tile, longest, tokens, is_cut=bool(processor.get("do_image_splitting", True))),
        patches=scale**2,
        values=3 * (patch * scale) ** 2,
        hidden=hidden,
        ffn=int(eyes.get("intermediate_size", 3072)),
    )


def _num_layers_read(config: Mapping[str, Any]) -> int:
    layers = config.get("vision_feature_layer", -2)
    return len(layers) if isinstance(layers, list) else 1


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _processor(path: Path) -> dict[str, Any]:
    """The settings of the image processor: a file of their own, or part of the processor's."""
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (path / name).is_file():
            found = read_json(path / name)
            settings = found if part is None else found.get(part)
            if isinstance(settings, dict):
                return settings
    raise NotServable(
        f"{path} has no preprocessor_config.json, which says how images are read; download the model again"
    )


def _fixed_size(processor: Mapping[str, Any], default: int) -> tuple[int, int]:
    """Height and width that every image is brought to."""
    cropped = processor.get("do_center_crop", True)
    for size in (processor.get("crop_size") if cropped else None, processor.get("size")):
        if isinstance(size, int):
            return size, size
        if isinstance(size, Mapping) and isinstance(size.get("height"), int):
            return int(size["height"]), int(size["width"])
    return default, default
