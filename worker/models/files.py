"""Which files of a repository or directory make a model that this engine serves. Names in, names out; no network."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worker.models.errors import NotServable

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_MODULE = re.compile(r"\d+_[A-Za-z]+/(config\.json|model\.safetensors)")  # poolings and dense layers of embedders
_OTHER_WEIGHTS = {
    ".bin": "PyTorch .bin files",
    ".pth": "PyTorch .pth files",
    ".pt": "PyTorch .pt files",
    ".gguf": "GGUF files",
    ".h5": "TensorFlow files",
    ".msgpack": "Flax files",
    ".onnx": "ONNX files",
    ".npz": "MLX files",
}


def choose(names: Iterable[str], where: str) -> list[str]:
    """The files to download out of a repository's `names`. Raises NotServable, with `where` in the message.

    Taken are the weights in safetensors, once, and the small files beside them. Left out are copies of the weights
    in other formats, original checkpoints in sub-folders, and documents.
    """
    every = set(names)
    weights = _weights(every, where)
    if CONFIG not in every:
        raise NotServable(f"{where} has no {CONFIG}; point to the directory or repository that holds the model itself")
    if not every.intersection(TOKENIZERS):
        raise NotServable(
            f"{where} has no tokeniser ({', '.join(TOKENIZERS[:3])} …); copy the tokeniser files of its base model"
        )
    small = {
        name
        for name in every
        if name.endswith(_TEXT_SUFFIXES)
        and (name.count("/") == 0 or name.startswith("additional_chat_templates/"))
        and not name.startswith(("README", "LICENSE", "NOTICE", "pytorch_model", "flax_model", "tf_model"))
    }
    small |= {name for name in every if _MODULE.fullmatch(name)}
    if SINGLE in every:
        small.discard(INDEX)
    return sorted(small | weights)


def _weights(every: set[str], where: str) -> set[str]:
    """The safetensors files that hold the weights."""
    here = {name for name in every if name.endswith(".safetensors") and "/" not in name}
    if SINGLE in here:
        return {SINGLE}
    if INDEX in every:
        return {name for name in here if name.startswith("model")} or here
    if "adapter_model.safetensors" in here or "adapter_config.json" in every:
        raise NotServable(f"{where} is an adapter, not a whole model; merge it into its base model first")
    if here:
        raise NotServable(f"{where} has {sorted(here)[0]} but neither {SINGLE} nor {INDEX}; save it with safetensors")
    for suffix, what in _OTHER_WEIGHTS.items():
        if any(name.endswith(suffix) for name in every):
            raise NotServable(f"{where} has only {what}; use a repository with safetensors weights, or convert it")
    raise NotServable(f"{where} holds no weights ({SINGLE} or {INDEX})")


def check_directory(path: Path) -> None:
    """Raise NotServable unless `path` holds a whole model: configuration, tokeniser and every shard of the weights."""
    if not path.is_dir():
        raise NotServable(f"{path} is not a directory; give the directory that holds {CONFIG}")
    chosen = choose((entry.name for entry in path.iterdir()), str(path))
    check_config(read_json(path / CONFIG), str(path))
    if INDEX in chosen:
        shards = sorted(set(read_json(path / INDEX).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if missing or not shards:
            raise NotServable(
                f"{path} lacks {len(missing)} of {len(shards)} shards ({', '.join(missing[:3])}); download it again"
            )


def check_config(config: dict[str, Any], where: str) -> None:
    """Raise NotServable if config.json names something that this engine does not run at all."""
    if not config.get("model_type"):
        raise NotServable(f"{CONFIG} of {where} names no model_type; it is not a transformers model")
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method", "an unnamed method")
        raise NotServable(f"{where} is quantised with {method}, which is not supported; use its unquantised repository")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises NotServable for anything else."""
    value = _read(path)
    if not isinstance(value, dict):
        raise NotServable(f"{path} is not a JSON object; download the model again")
    return value


def read_list(path: Path) -> list[dict[str, Any]]:
    """The objects of the array in a JSON file. Raises NotServable for anything else."""
    value = _read(path)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise NotServable(f"{path} is not a JSON array of objects; download the model again")
    return value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotServable(f"{path} is missing; download the model again") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NotServable(f"{path} is not JSON ({error}); download the model again") from error
