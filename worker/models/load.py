"""From a directory to a module on its device: transformers' own model class, weights straight from safetensors.

Nothing is fetched and no code from the directory is run. Every weight must have its place and every place its weight.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from worker.models.errors import BadWeights, NotServable
from worker.models.plan import stored_dtype
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
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise NotServable(
            f"{path} is of type {config.model_type}, which transformers does not map to a causal language model; "
            "use the text-only checkpoint of this model if there is one"
        )
    return config


def load(
    path: Path, *, device: str, dtype: str, attention: str, progress: Progress = lambda done, total: None
) -> nn.Module:
    """The model in `path` on `device`, in evaluation mode, computing in `dtype` (a torch name) with the attention
    function registered under `attention`. Raises NotServable or BadWeights.
    """
    config = read_config(path)
    tensors = read_headers(path)
    total = sum(tensor.stored_bytes for tensor in tensors)
    target = getattr(torch, dtype)
    # Weights whose type stays come as views of the mapped file and are read by the copy below; others are read, and
    # converted, by transformers.
    is_mapped = dtype == stored_dtype(tensors)
    with _Quiet(lambda part: progress(int(part * total), total) if not is_mapped else None):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=target,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
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
    _settle(model, torch.device(device), copy=is_mapped, progress=lambda done: progress(min(done, total), total))
    progress(total, total)
    module: nn.Module = model.eval().requires_grad_(False)
    return module


def _settle(model: nn.Module, device: torch.device, *, copy: bool, progress: Callable[[int], None]) -> None:
    """Move every tensor into the device's own memory, one at a time."""
    done = 0
    for tensor in _tensors(model):
        moved = tensor.data.to(device)
        if copy and moved.data_ptr() == tensor.data_ptr():
            # Of the mapped file: it would change with the file and leave memory under pressure.
            moved = moved.clone()
        tensor.data = moved
        if copy:
            done += moved.numel() * moved.element_size()
            progress(done)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class _Quiet:
    """transformers without bars and warnings; its progress goes to `part`, from 0.0 to 1.0 in tensors."""

    def __init__(self, part: Callable[[float], None]) -> None:
        self._part = part

    def __enter__(self) -> None:
        self._verbosity = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._hook = logging.set_tqdm_hook(lambda factory, args, kwargs: _Bar(args, kwargs, self._part))

    def __exit__(self, *_: object) -> None:
        logging.set_tqdm_hook(self._hook)
        logging.set_verbosity(self._verbosity)
        if self._bars:
            logging.enable_progress_bar()


class _Bar:
    """What transformers uses of a progress bar."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], part: Callable[[float], None]) -> None:
        self._items = args[0] if args else kwargs.get("iterable", ())
        self._part = part

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items) if hasattr(self._items, "__len__") else 0
        for number, item in enumerate(self._items, start=1):
            yield item
            if total:
                self._part(number / total)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None  # update, close, set_description …


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
