"""Tiny vision-language checkpoints of real architectures, images, and what transformers itself generates from both."""

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageFilter

from tests.support.tiny import stir, write_tokenizer

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
_QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_PIXELS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
}

# The published templates, as far as they matter: images as parts, in their places or before the text.
QWEN_VL_TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAVA_TEMPLATE = """\
{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}\
{% endif %}{{ '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

PIXTRAL_TEMPLATE = LLAVA_TEMPLATE.replace("'<image>\n'", "'[IMG]'")
IDEFICS_TEMPLATE = """\
<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}\
{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

_LLAMA_STYLE = {"llava": ("<image>",), "siglip": ("<image>",), "pixtral": ("[IMG]", "[IMG_BREAK]", "[IMG_END]")}
_LLAMA_STYLE["mistral3"] = _LLAMA_STYLE["pixtral"]
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
_IDEFICS_MARKS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *_TILES)
FAMILIES = ("llava", "siglip", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "pixtral", "mistral3", "idefics3", "smolvlm")


def make_vision_checkpoint(directory: Path, family: str, *, seed: int = 3, **processor: Any) -> Path:
    """Write a tiny checkpoint of a family with all its files and return its directory.

    `processor` goes over the image processor's settings.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    style, marks, template = ("qwen3", _QWEN_MARKS, QWEN_VL_TEMPLATE)
    if family in _LLAMA_STYLE:
        style, marks = "llama3", _LLAMA_STYLE[family]
        template = PIXTRAL_TEMPLATE if "[IMG]" in marks else LLAVA_TEMPLATE
    elif family in ("idefics3", "smolvlm"):
        marks, template = _IDEFICS_MARKS, IDEFICS_TEMPLATE
    tokens = write_tokenizer(directory, style, more=marks, template=template)
    ids = _ids(directory)
    common = {"bos_token_id": tokens["bos"], "eos_token_id": tokens["eos"][0], "pad_token_id": tokens["pad"]}
    text = _TEXT | common | {"vocab_size": (tokens["size"] + 63) // 64 * 64}
    values, settings = _MAKERS[family](text, ids)
    model_type = "llava" if family in ("pixtral", "siglip") else family  # these are towers of llava
    config = AutoConfig.for_model(model_type, **values, tie_word_embeddings=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        stir(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokens["bos"], eos_token_id=tokens["eos"], pad_token_id=tokens["pad"], do_sample=False
    )
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(_PIXELS | settings | processor, indent=2))
    return directory


def _ids(directory: Path) -> dict[str, int]:
    entries = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    return {entry["content"]: entry["id"] for entry in entries}


def _llava(tower: str) -> Any:
    def make(text: dict[str, Any], ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        eyes = {
            "model_type": f"{tower}_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 6,
        }
        values = {
            "text_config": {"model_type": "llama", **text},
            "vision_config": eyes,
            "image_token_id": ids["<image>"],
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        }
        if tower == "siglip":
            size = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}}
            return values, size
        crop = {"crop_size": {"height": 24, "width": 24}, "do_center_crop": True}
        return values, {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, **crop}

    return make


def _qwen(kind: str) -> Any:
    def make(text: dict[str, Any], ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
        if kind == "qwen3_vl":
            rope["mrope_interleaved"] = True
            text = text | {"head_dim": 16}
        eyes: dict[str, Any] = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
        if kind == "qwen2_vl":
            eyes |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        else:
            eyes |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
        if kind == "qwen2_5_vl":
            eyes |= {"window_size": 16, "fullatt_block_indexes": [1]}
        if kind == "qwen3_vl":
            eyes |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        values = {"text_config": {"model_type": f"{kind}_text", **text, "rope_parameters": rope}, "vision_config": eyes}
        values |= {name: ids[mark] for name, mark in zip(names, marks, strict=True)}
        settings = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 4,
            "merge_size": 2,
            "temporal_patch_size": 2,
        }
        if kind == "qwen3_vl":
            settings["size"] = {"shortest_edge": 4 * 64, "longest_edge": 24 * 64}
        else:
            settings |= {"min_pixels": 4 * 64, "max_pixels": 24 * 64}
        return values, settings

    return make


def _pixtral(kind: str) -> Any:
    def make(text: dict[str, Any], ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        eyes = {
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 4,
        }
        language = {"model_type": "mistral", **text, "sliding_window": None, "head_dim": 16}
        values = {"text_config": language, "vision_config": eyes, "image_token_id": ids["[IMG]"]}
        values |= {"vision_feature_layer": -1}
        if kind == "mistral3":
            values |= {"spatial_merge_size": 2}
        else:
            values |= {"vision_feature_select_strategy": "full"}
        edge = 48 if kind == "mistral3" else 24
        patch = {"height": 4, "width": 4}
        return values, {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": edge},
            "patch_size": patch,
        }

    return make


def _idefics(kind: str) -> Any:
    def make(text: dict[str, Any], ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        eyes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        }
        values = {
            "text_config": {"model_type": "llama", **text},
            "vision_config": eyes,
            "image_token_id": ids["<image>"],
            "scale_factor": 2,
        }
        name = "Idefics3ImageProcessor" if kind == "idefics3" else "SmolVLMImageProcessor"
        size = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
        return values, {"image_processor_type": name, "do_pad": True, "do_image_splitting": True, **size}

    return make


_MAKERS = {
    "llava": _llava("clip"),
    "siglip": _llava("siglip"),
    **{kind: _qwen(kind) for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{kind: _pixtral(kind) for kind in ("pixtral", "mistral3")},
    **{kind: _idefics(kind) for kind in ("idefics3", "smolvlm")},
}


def picture(seed: int, width: int = 40, height: int = 24, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A file with an image that is like no other."""
    numbers = numpy.random.default_rng(seed)
    image = Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=numpy.uint8))
    file = io.BytesIO()
    image.filter(ImageFilter.BoxBlur(1)).convert(mode).save(file, kind)
    return file.getvalue()


def image_part(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    """The part of a message as gateways send it."""
    return {"type": "image", "media_type": media_type, "data": base64.b64encode(data).decode()}


def user(*parts: str | bytes) -> dict[str, Any]:
    """A message of texts and images."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else image_part(part) for part in parts]
    return {"role": "user", "content": content}


@functools.cache
def _load(directory: Path) -> tuple[Any, Any, Any]:
    """Model, tokeniser and image processor, as transformers loads them."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, PreTrainedTokenizerFast

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    return model, tokenizer, AutoImageProcessor.from_pretrained(directory)


def reference_inputs(directory: Path, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What transformers' own processor of the family makes of messages."""
    from transformers import Idefics3Processor, LlavaProcessor
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.processing_utils import ProcessorMixin

    model, tokenizer, images = _load(directory)
    shown = [
        Image.open(io.BytesIO(base64.b64decode(part["data"]))).convert("RGB")
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image"
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    family = model.config.model_type
    if model.config.vision_config.model_type == "pixtral":
        return _pixtral_inputs(images, tokenizer, text, shown, 8 if family == "mistral3" else 4)
    if family in ("idefics3", "smolvlm"):
        processor = Idefics3Processor(images, tokenizer, image_seq_len=4)
    elif family == "llava":
        tokenizer.image_token = "<image>"
        strategy, extra = model.config.vision_feature_select_strategy, 0
        if model.config.vision_config.model_type == "clip_vision_model":
            extra = 1
        processor = LlavaProcessor(
            images,
            tokenizer,
            patch_size=6,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=extra,
        )
    else:
        kinds = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
        # Without torchvision there is no processor of videos, which these ask for.
        known = ProcessorMixin.check_argument_for_proper_class
        ProcessorMixin.check_argument_for_proper_class = lambda self, name, argument: type(argument)
        try:
            processor = kinds[family](images, tokenizer, None)
        finally:
            ProcessorMixin.check_argument_for_proper_class = known
    options = {"images": shown} if shown else {}
    return dict(processor(text=[text], return_tensors="pt", add_special_tokens=False, **options))


def _pixtral_inputs(images: Any, tokenizer: Any, text: str, shown: list[Any], side: int) -> dict[str, Any]:
    """As the family's processor, which needs torchvision: rows of marks, each with its end."""
    made = images(shown, patch_size={"height": side, "width": side}, return_tensors="pt") if shown else {}
    head, *rest = text.split("[IMG]")
    for (height, width), behind in zip(made.get("image_sizes", ()), rest, strict=True):
        rows = [["[IMG]"] * (int(width) // side) + ["[IMG_BREAK]"]] * (int(height) // side)
        words = [word for row in rows for word in row]
        head += "".join([*words[:-1], "[IMG_END]"]) + behind
    return dict(tokenizer(head, return_tensors="pt", add_special_tokens=False)) | dict(made)


def generate(directory: Path, messages: list[dict[str, Any]], num_tokens: int) -> list[int]:
    """What transformers generates greedily, without regard for tokens that end a text."""
    model = _load(directory)[0]
    inputs = reference_inputs(directory, messages)
    model.model.rope_deltas = None
    out = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None)
    return out[0, inputs["input_ids"].shape[1] :].tolist()
