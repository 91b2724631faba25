"""From files to what a model's tower reads, by transformers' own image processors, beside the steps.

Pillow and numpy leave the interpreter to others while they work, and the thread leaves the cores to them too.
"""

import contextlib
import io
import math
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from worker.engine.warm import NICE
from worker.models.errors import NotServable
from worker.models.image_layout import Area, Edge, Tiles
from worker.models.vision import Vision
from worker.protocol import Image

_OTHERS = ("image_grid_thw", "image_sizes", "pixel_attention_mask")


class Pixels:
    """What the tower reads of one image."""

    def __init__(self, values: Tensor, others: dict[str, Tensor]) -> None:
        """`others`: what goes to the tower with the values, by the names that it has for them."""
        self.values = values
        self.others = others

    @property
    def num_bytes(self) -> int:
        """In host memory."""
        return self.values.nbytes


class WrongGrid(ValueError):
    """The image processor made something else of an image than its prompt has room for."""

    def __init__(self, found: object, expected: object) -> None:
        super().__init__(f"an image has become {found} patches where the prompt has room for {expected}")


class PixelMaker:
    """Makes pixels, job by job. While others fill `max_bytes` and wait for the tower, none are made."""

    def __init__(self, path: Path, vision: Vision, max_bytes: int) -> None:
        self._vision = vision
        self._process = _load(path)
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._room = threading.Condition()
        self._pool = ThreadPoolExecutor(1, "pixels", initializer=_be_nice)

    def begin(self, images: Sequence[Image]) -> "Future[list[Pixels]]":
        """The pixels of these images, soon."""
        return self._pool.submit(self._make_all, images)

    def make(self, image: Image) -> Pixels:
        """The pixels of one image, at once."""
        from PIL import Image as Library
        from PIL import ImageOps

        Library.MAX_IMAGE_PIXELS = None  # whoever sent the file has checked it
        with Library.open(io.BytesIO(image.data)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        made = self._process(images=[picture], return_tensors="pt", **self._vision.rule.options)
        self._check(image, made)
        return Pixels(made["pixel_values"], {name: made[name] for name in _OTHERS if name in made})

    def _check(self, image: Image, made: Any) -> None:
        """Rows and columns; whether there are enough of them shows in what the tower makes of them."""
        rule = self._vision.rule
        match rule:
            case Area():
                merge = math.isqrt(self._vision.patches)
                found = tuple(int(side) // merge for side in made["image_grid_thw"][0][1:])
            case Edge():
                found = tuple(int(side) // rule.side for side in made["image_sizes"][0])
            case Tiles():
                found = int(made["rows"][0][0]), int(made["cols"][0][0])
            case _:
                return
        if found != tuple(image.grid):
            raise WrongGrid(found, image.grid)

    def _make_all(self, images: Sequence[Image]) -> list[Pixels]:
        with self._room:
            self._room.wait_for(lambda: self._num_bytes < self._max_bytes)
        return [self._make_counted(image) for image in images]

    def _make_counted(self, image: Image) -> Pixels:
        pixels = self.make(image)
        size = pixels.num_bytes
        with self._room:
            self._num_bytes += size
        weakref.finalize(pixels, self._forget, size)
        return pixels

    def _forget(self, size: int) -> None:
        with self._room:
            self._num_bytes -= size
            self._room.notify_all()


def _load(path: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotServable(f"the image processor of {path} cannot be loaded: {reason}") from error


def _be_nice() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
