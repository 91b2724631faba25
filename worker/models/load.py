"""From a directory to a module on its device: transformers' own model class, weights straight from safetensors.

Nothing is fetched and no code from the directory is run. Every weight must have its place and every place its weight.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.utils import logging

from worker.models import vision
from worker.models.division import Division
from worker.models.errors import BadWeights, NotServable
from worker.models.mapped import Mapped
from worker.models.shares import shared_out
from worker.models.stored import opened
from worker.models.weights import read_headers

Progress = Callable[[int, int], None]  # bytes read, bytes in all


def read_config(path: Path) -> Any:
    """The transformers configuration of the model in `path`. Raises NotServable if no causal language model has it."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise NotServable(
            f"transformers {transformers.__version__} cannot read the configuration in {path} "
            f"({_first_line(error)}); models that bring their own code are not supported, newer ones may need an update"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise NotServable(f"{path} is an encoder-decoder model ({config.model_type}); only decoders are supported")
    if vision.serves_eyes({"model_type": config.model_type}):
        return config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if hasattr(config, "vision_config"):
            raise NotServable(f"{path}: {vision.refusal({'model_type': config.model_type})}")
        raise NotServable(
            f"{path} is of type {config.model_type}, which transformers does not map to a causal language model; "
            "use the text-only checkpoint of this model if there is one"
        )
    return config


def load(
    path: Path,
    *,
    device: str,
    dtype: str,
    attention: str,
    progress: Progress = lambda done, total: None,
    leave: bool = False,
    division: Division | None = None,
) -> nn.Module:
    """The model in `path` on `device`, in evaluation mode, computing in `dtype` (a torch name) with the attention
    function registered under `attention`. Raises NotServable or BadWeights.

    With `leave`, matrices stay in their files until they are packed: see `worker.models.mapped`. With a `division`, it
    is a rank's share of the model, and no more than that is read.
    """
    config = read_config(path)
    whole = headers = read_headers(path)
    if division is not None:
        _shrink(config, division)
        headers = [division.openable(header) for header in whole]
    mapped = Mapped() if leave and device == "cpu" else None
    with _Quiet(), opened(headers, progress) as tensors:
        if mapped is not None:
            tensors = mapped.leave(headers, tensors, getattr(torch, dtype))
        if division is not None:
            tensors = shared_out(division, whole, tensors)
        try:
            # transformers makes the modules without memory, finds each tensor's place under whatever name the
            # checkpoint has for it, and reads it there, in several threads, as it would from its own open files.
            model, info = _model_class(config).from_pretrained(
                None,
                state_dict=tensors,
                config=config,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # listed below with everything else that does not fit
                output_loading_info=True,
            )
        except (RuntimeError, OSError) as error:
            raise BadWeights(path, other=[_first_line(error)]) from error
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = [key for key in info["missing_keys"] if key not in mismatched]
    if missing or info["unexpected_keys"] or mismatched or info["error_msgs"]:
        raise BadWeights(
            path,
            missing=missing,
            unexpected=list(info["unexpected_keys"]),
            mismatched=mismatched,
            other=list(info["error_msgs"]),
        )
    for tensor in _tensors(model):  # one at a time, so that nothing but the largest exists twice
        tensor.data = tensor.data.to(device)
    module: nn.Module = model.eval().requires_grad_(False)
    if mapped is not None:
        mapped.watch(module)
    return module


def _shrink(config: Any, division: Division) -> None:
    """Make it the configuration of a share."""
    for name, value in division.measures.items():
        setattr(config, name, value)
    config.pad_token_id = None  # it may be a word of another rank


def _model_class(config: Any) -> Any:
    """The class of language model for this configuration, with eyes where images are served."""
    if vision.serves_eyes({"model_type": config.model_type}):
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(found, tuple | list):
        return found
    named = getattr(config, "architectures", None) or []
    return next((one for one in found if one.__name__ in named), found[0])


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class _Quiet:
    """transformers without bars and warnings."""

    def __enter__(self) -> None:
        self._verbosity = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        logging.set_verbosity(self._verbosity)
        if self._bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
