"""A loaded model with eyes made ready to compute. It takes the general path; its tower stays as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared import log
from worker.engine.paged_model import PagedModel
from worker.engine.prepared import PathChoice, Prepared, prepare_any
from worker.engine.vision.features import FeatureCache
from worker.engine.vision.pixels import PixelMaker
from worker.engine.vision.seer import Seer
from worker.engine.vision.sight import Sight
from worker.engine.vision.tower import Tower
from worker.engine.vision.trial import try_image
from worker.models.vision import Vision


def prepare_seeing(
    load: Callable[[], nn.Module],
    dtype: torch.dtype,
    choice: PathChoice,
    *,
    path: Path,
    vision: Vision,
    slots: int,
    step_tokens: int,
) -> tuple[nn.Module, Prepared, Sight]:
    """As `prepare_any` for a model with eyes, and what sees for it.

    Args:
        path: of the checkpoint, with the settings of its image processor.
        slots: sequences at once; so many images are kept, up to a bound.
        step_tokens: tokens of images that a step sees for the first time.

    Raises:
        UnsupportedArchitecture: no path gives what the model itself gives.
        NotServable: its image processor cannot be loaded.
    """
    model, prepared = prepare_any(load, dtype, replace(choice, path="generic"))
    return model, *see(model, prepared, dtype, path=path, vision=vision, slots=slots, step_tokens=step_tokens)


def see(
    model: nn.Module,
    prepared: Prepared,
    dtype: torch.dtype,
    *,
    path: Path,
    vision: Vision,
    slots: int,
    step_tokens: int,
) -> tuple[Prepared, Sight]:
    """Give a prepared model its eyes."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    hidden = embedding.weight.shape[-1]
    maker = PixelMaker(path, vision, vision.pixel_bytes(slots))
    features = FeatureCache(vision.feature_bytes(hidden, dtype.itemsize, slots))
    sight = Sight(vision, Tower(model), maker, features, step_tokens=step_tokens)

    def make(*arguments: Any, **options: Any) -> PagedModel:
        paged = prepared.make(*arguments, **options)
        assert isinstance(paged, PagedModel), "a model with eyes takes the general path"
        paged.seer = Seer(model, sight)
        return paged

    seeing = replace(prepared, make=make, make_trial=None)
    error = try_image(model, seeing, sight, maker, dtype, embedding.weight.shape[0])
    log.get(__name__).info("image.tested", error=round(error, 6))
    return seeing, sight
