"""An embedding model: transformers' own base model, without a KV cache, and the pooling that its files ask for."""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging

from worker.models.errors import NotServable
from worker.models.files import CONFIG, read_json
from worker.models.pooling import Pooling

_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "GELU": nn.GELU, "ReLU": nn.ReLU, "Sigmoid": nn.Sigmoid}
_UNUSED = ("pooler.", "lm_head.", "cls.", "classifier.")  # parts that a base model may or may not have


def load_embedder(path: Path, pooling: Pooling, *, device: str, dtype: str) -> "Embedder":
    """The model in `path` on `device`. Raises NotServable, also when weights are missing."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is missing is judged below
    try:
        model, report = AutoModel.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError) as error:
        raise NotServable(
            f"transformers {transformers.__version__} cannot load the model in {path} ({str(error).splitlines()[0]})"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        raise NotServable(f"{path} lacks {len(missing)} weights ({', '.join(missing[:3])}); download it again")
    model.config.use_cache = False
    dense = [_dense(path / folder, getattr(torch, dtype)) for folder in pooling.dense]
    return Embedder(model.to(device).eval(), nn.Sequential(*dense).to(device).eval(), pooling)


class Embedder:
    """Texts, as token ids, to vectors."""

    def __init__(self, model: Any, dense: nn.Sequential, pooling: Pooling) -> None:
        self._model = model
        self._dense = dense
        self._pooling = pooling
        self._pad = getattr(model.config, "pad_token_id", None) or 0
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self._device = next(model.parameters()).device

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        parameters = [*self._model.parameters(), *self._dense.parameters()]
        return sum(tensor.numel() * tensor.element_size() for tensor in parameters)

    @torch.inference_mode()
    def embed(self, batch: list[list[int]]) -> list[bytes]:
        """The vector of each input as little-endian float32."""
        lengths = torch.tensor([len(ids) for ids in batch], device=self._device)
        width = max(len(ids) for ids in batch)
        ids = torch.tensor([one + [self._pad] * (width - len(one)) for one in batch], device=self._device)
        # Padding stands on the right: positions count from 0, and a causal model never sees it.
        mask = torch.arange(width, device=self._device) < lengths[:, None]
        is_padded = any(len(one) < width for one in batch)
        hidden = self._model(input_ids=ids, attention_mask=mask.long() if is_padded else None).last_hidden_state
        vectors = self._dense(self._pool(hidden, mask, lengths)).float()
        if self._pooling.normalize:
            vectors = nn.functional.normalize(vectors, dim=-1)
        if not bool(torch.isfinite(vectors).all()):
            raise ArithmeticError("the model's vectors are not finite; the weights may be damaged, or the dtype narrow")
        rows = vectors.cpu().contiguous().numpy()
        return [(row if sys.byteorder == "little" else row.byteswap()).tobytes() for row in rows]

    def _pool(self, hidden: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        match self._pooling.kind:
            case "cls":
                return hidden[:, 0]
            case "last":
                return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
            case "max":
                return hidden.masked_fill(~mask[..., None], float("-inf")).max(dim=1).values
            case "mean":
                total = (hidden.float() * mask[..., None]).sum(dim=1)
                return (total / lengths[:, None]).to(hidden.dtype)


def _dense(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A dense layer as sentence-transformers keeps it in a folder."""
    config = read_json(folder / CONFIG)
    name = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise NotServable(f"{folder / CONFIG} has the activation {name!r}, which is not served")
    layer = nn.Linear(int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)))
    try:
        tensors = load_file(folder / "model.safetensors")
        layer.load_state_dict({key.removeprefix("linear."): value for key, value in tensors.items()})
    except (OSError, RuntimeError) as error:
        raise NotServable(f"the dense layer in {folder} cannot be read ({error}); download the model again") from error
    return nn.Sequential(layer.to(dtype), _ACTIVATIONS[name]())
