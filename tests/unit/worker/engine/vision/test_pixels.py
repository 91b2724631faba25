"""Pixels are made one job at a time, within a bound, and are what the prompt has room for."""

import threading
from pathlib import Path

import pytest

from shared.messages import Prompt
from tests.support.vision import make_vision_checkpoint, picture, user
from worker.engine.vision.pixels import PixelMaker, WrongGrid
from worker.models.errors import NotServable
from worker.models.vision import read_vision
from worker.protocol import Image
from worker.text.model_text import ModelText


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_checkpoint(tmp_path_factory.mktemp("seeing"), "qwen2_vl")


def make_maker(path: Path, max_bytes: int = 1 << 20) -> PixelMaker:
    vision = read_vision(path)
    assert vision is not None
    return PixelMaker(path, vision, max_bytes)


def images(path: Path, *files: bytes) -> list[Image]:
    reading = ModelText.load(path).read(Prompt(messages=[user(*files)]))
    return [Image(one.data, one.digest, one.grid, one.runs) for one in reading.images]


def test_a_job_waits_while_others_fill_the_bound(path: Path) -> None:
    waits = threading.Event()

    class Telling(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()
            return super().wait(timeout)

    maker = make_maker(path, max_bytes=1)
    maker._room = Telling()
    held = maker.begin(images(path, picture(1), picture(2))).result(30)  # its own images do not stand in its way
    next_one = maker.begin(images(path, picture(3)))
    assert waits.wait(30)
    assert not next_one.done()
    held.clear()
    assert next_one.result(30)[0].num_bytes > 0


def test_a_photograph_is_turned_as_it_was_measured(path: Path) -> None:
    import io

    from PIL import Image as Library

    file, exif = io.BytesIO(), Library.Exif()
    exif[0x0112] = 6
    Library.new("RGB", (48, 16), (9, 200, 9)).save(file, "JPEG", exif=exif)
    (image,) = images(path, file.getvalue())
    assert image.grid == (6, 2)
    assert make_maker(path).make(image).others["image_grid_thw"].tolist() == [[1, 12, 4]]


def test_another_grid_is_an_error(path: Path) -> None:
    (image,) = images(path, picture(1))
    image.grid = image.grid[::-1]
    with pytest.raises(WrongGrid, match="room for"):
        make_maker(path).make(image)


def test_a_processor_that_is_not_there(path: Path, tmp_path: Path) -> None:
    vision = read_vision(path)
    assert vision is not None
    with pytest.raises(NotServable, match="image processor"):
        PixelMaker(tmp_path, vision, 1)
