"""How a model's hidden states become one vector: read from the files that sentence-transformers writes. No torch.

modules.json lists the parts in order: the transformer, a pooling, dense layers if any, and a normalisation if any.
Without it, an encoder is pooled by the mean and a decoder by its last token, and both are normalised. The model's
options `pooling` and `normalize` in the catalogue go before all of this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from worker.models.errors import NotServable
from worker.models.files import CONFIG, read_json, read_list
from worker.models.shape import read_shape

Kind = Literal["mean", "cls", "last", "max"]

MODULES = "modules.json"
_LIMITS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
_FLAGS: dict[str, Kind | None] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
}
_NAMES: dict[str, Kind] = {"lasttoken": "last", "mean": "mean", "cls": "cls", "max": "max", "last": "last"}
_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")  # whose positions begin after the padding id


@dataclass(frozen=True, slots=True)
class Pooling:
    """The way from hidden states to a vector."""

    kind: Kind
    normalize: bool
    dense: tuple[str, ...] = ()  # folders of dense layers, in order


def read_pooling(path: Path, options: Mapping[str, Any] | None = None) -> Pooling:
    """The pooling of the model in `path`. Raises NotServable for one that is not served."""
    found = _of_modules(path) if (path / MODULES).is_file() else _of_architecture(path)
    chosen = dict(options or {})
    kind = chosen.pop("pooling", found.kind)
    normalize = chosen.pop("normalize", found.normalize)
    if kind not in get_args(Kind) or not isinstance(normalize, bool):
        raise NotServable(f"the options pooling and normalize must be one of {', '.join(get_args(Kind))} and a boolean")
    return Pooling(kind, normalize, found.dense)


def embedding_context(path: Path, wanted: int = 0) -> int:
    """Tokens that one input may have: the least of what model, tokeniser and sentence-transformers files say."""
    config = read_json(path / CONFIG)
    limits = [read_shape(path).context_limit]
    if config.get("model_type") in _OFFSET:
        limits[0] -= int(config.get("pad_token_id") or 0) + 1
    for file, key in (("tokenizer_config.json", "model_max_length"), *((name, "max_seq_length") for name in _LIMITS)):
        value = read_json(path / file).get(key) if (path / file).is_file() else None
        if isinstance(value, int) and value > 0:
            limits.append(value)
    return min([*limits, wanted] if wanted else limits)


def _of_modules(path: Path) -> Pooling:
    kind: Kind | None = None
    dense: list[str] = []
    normalize = False
    for module in read_list(path / MODULES):
        name, folder = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if name == "Pooling":
            kind = _kind(path / folder / CONFIG)
        elif name == "Dense":
            dense.append(folder)
        elif name == "Normalize":
            normalize = True
        elif name not in ("Transformer", "Dropout"):
            raise NotServable(f"{path / MODULES} has a module {name!r}, which is not served")
    if kind is None:
        raise NotServable(f"{path / MODULES} names no pooling; only models of one vector per text are served")
    return Pooling(kind, normalize, tuple(dense))


def _kind(file: Path) -> Kind:
    config = read_json(file)
    named = config.get("pooling_mode")
    if isinstance(named, str) and named in _NAMES:
        return _NAMES[named]
    chosen = [flag for flag in _FLAGS if config.get(flag)]
    kind = _FLAGS[chosen[0]] if len(chosen) == 1 else None
    if kind is None:
        raise NotServable(f"{file} asks for {' and '.join(chosen) or named or 'no'} pooling, which is not served")
    return kind


def _of_architecture(path: Path) -> Pooling:
    names = read_json(path / CONFIG).get("architectures") or [""]
    is_decoder = any(str(name).endswith(("ForCausalLM", "ForConditionalGeneration")) for name in names)
    return Pooling("last" if is_decoder else "mean", normalize=True)
