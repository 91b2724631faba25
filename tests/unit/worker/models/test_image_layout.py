"""How images stand in prompts: as the image processors of transformers make them, for sizes of all sorts."""

import json
import random

import numpy
import pytest
from PIL import Image

from worker.models.image_layout import Area, Edge, Fixed, Layout, Tiles, TooLopsided


def sizes(count: int, largest: int) -> list[tuple[int, int]]:
    numbers = random.Random(5)
    return [(numbers.randint(1, largest), numbers.randint(1, largest)) for _ in range(count)]


@pytest.mark.parametrize("rule", [Area(28, 56 * 56, 28 * 28 * 1280), Area(32, 4 * 1024, 64 * 1024)])
def test_areas(rule):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for width, height in [*sizes(400, 3000), *sizes(100, 60)]:
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(TooLopsided):
                rule.layout(width, height)
            continue
        high, wide = smart_resize(height, width, rule.side, rule.least, rule.most)
        layout = rule.layout(width, height)
        assert layout.grid == (high // rule.side, wide // rule.side)
        assert layout.pieces == (layout.grid[0] * layout.grid[1],)


@pytest.mark.parametrize("rule", [Edge(16, 1024, "/", "."), Edge(28, 1540, "/", ".")])
def test_edges(rule):
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    for width, height in sizes(200, 4000):
        image = numpy.broadcast_to(numpy.zeros(1, numpy.uint8), (height, width, 3))
        if max(width, height) > rule.longest and min(width, height) * rule.longest < max(width, height):
            with pytest.raises(TooLopsided):
                rule.layout(width, height)
            continue
        high, wide = get_resize_output_image_size(image, (rule.longest, rule.longest), (rule.side, rule.side))
        assert rule.layout(width, height).grid == (high // rule.side, wide // rule.side)
    assert rule.layout(3 * rule.side, 2 * rule.side).text("x") == "x/x."


@pytest.mark.parametrize("longest", [31, 64, 90])
def test_tiles(longest, tmp_path):
    from transformers import AutoImageProcessor

    settings = {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": 16},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    rule = Tiles(16, longest, 4)
    for width, height in [*sizes(60, 120), (1, 100), (100, 1), (50, 50)]:
        made = processor(images=[Image.new("RGB", (width, height))], return_tensors="np", **rule.options)
        assert rule.layout(width, height).grid == (int(made["rows"][0][0]), int(made["cols"][0][0])), (width, height)


def test_texts_of_tiles():
    two = Tiles(16, 32, 4).layout(64, 16)
    assert two.runs == [4, 4, 4]
    assert two.text("x") == (
        "<fake_token_around_image><row_1_col_1>x<fake_token_around_image><row_1_col_2>x\n"
        "\n<fake_token_around_image><global-img>x<fake_token_around_image>"
    )
    whole = Tiles(16, 32, 4, is_cut=False).layout(64, 16)
    assert whole.text("x") == "<fake_token_around_image><global-img>x<fake_token_around_image>"


def test_the_largest_image():
    some = [(999, 999), (400, 900), *((50 + width, 50 + height) for width, height in sizes(50, 900))]
    for rule in (Area(28, 56 * 56, 28 * 28 * 64), Edge(16, 128, "/", "."), Tiles(16, 64, 4), Tiles(16, 16, 4)):
        found = max(sum(rule.layout(width, height).runs) for width, height in some)
        assert found == rule.max_tokens
    assert Fixed(24, 24).layout(1, 1000) == Layout((24, 24), (576,))
