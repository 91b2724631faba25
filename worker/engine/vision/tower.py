"""The part of a model that reads pixels: from them to embeddings."""

from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.vision.parts import parts_of
from worker.engine.vision.pixels import Pixels, WrongGrid


class Tower:
    """Runs the tower of a model."""

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model.model
        self._inner = inner
        like = next(parts_of(model)[0].parameters())
        self._device, self._dtype = like.device, like.dtype

    @torch.inference_mode()
    def encode(self, pixels: Pixels, num_tokens: int) -> list[Tensor]:
        """The embeddings of one image, [tokens, hidden] for the input and for each later layer that adds some.

        Raises:
            WrongGrid: they are not `num_tokens`.
        """
        values = pixels.values.to(self._device, self._dtype)
        others = {name: tensor.to(self._device) for name, tensor in pixels.others.items()}
        found = self._inner.get_image_features(values, return_dict=True, **others)
        levels = [torch.cat(list(found.pooler_output), 0)]
        levels += [torch.cat(list(level), 0) for level in getattr(found, "deepstack_features", None) or ()]
        if len(levels[0]) != num_tokens:
            raise WrongGrid(len(levels[0]), num_tokens)
        return levels
