"""Images in prompts: read, measured, refused with their place, put where they belong. None of it needs a model."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.messages import Prompt
from tests.support.tiny import write_tokenizer
from tests.support.vision import LLAVA_TEMPLATE, image_part, picture, user
from worker.text import images
from worker.text.errors import NoSight, PromptError
from worker.text.model_text import ModelText

CONFIG = {
    "model_type": "qwen2_vl",
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "vision_config": {"patch_size": 4, "embed_dim": 32},
}
PIXELS = {"min_pixels": 256, "max_pixels": 64 * 64, "patch_size": 4, "merge_size": 2}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def write(path: Path, template: str = LLAVA_TEMPLATE) -> Path:
    """All files of a seeing model but its weights. An image is put where the template writes <image>."""
    write_tokenizer(path, "llama3", more=("<image>",), template=template)
    added = json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    mark = next(entry["id"] for entry in added if entry["content"] == "<image>")
    (path / "config.json").write_text(json.dumps(CONFIG | {"image_token_id": mark}))
    (path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    return ModelText.load(write(tmp_path_factory.mktemp("seeing")))


def read(text: ModelText, *messages: dict[str, Any], **fields: Any) -> Any:
    return text.read(Prompt(messages=list(messages), **fields))


def refused(text: ModelText, *parts: str | bytes) -> PromptError:
    with pytest.raises(PromptError) as caught:
        read(text, user(*parts))
    return caught.value


def test_an_image_takes_its_place(text: ModelText) -> None:
    assert text.capabilities["vision"]
    reading = read(text, user("before", picture(1, 40, 24), "after"))
    (image,) = reading.images
    (first, count), mark = image.runs[0], reading.ids[image.runs[0][0]]
    assert (image.grid, count) == ((3, 5), 15)
    assert reading.ids[first : first + count] == [mark] * 15 == [one for one in reading.ids if one == mark]
    assert len(text.encode(Prompt(messages=[user("before", picture(1, 40, 24), "after")]))) == len(reading.ids)


def test_equal_prompts_in_other_shapes_are_equal(text: ModelText) -> None:
    data = picture(1)
    one = read(text, user("a", "b", data))
    two = read(text, {"role": "user", "content": ["ab", image_part(data, "image/x")]})
    assert one == two
    assert read(text, user("a", "b", picture(2))).images[0].digest != one.images[0].digest
    assert read(text, user("only text")).ids == read(text, {"role": "user", "content": "only text"}).ids


def test_a_system_message_that_moves_keeps_images_in_place(tmp_path: Path) -> None:
    first = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    late = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    text = ModelText.load(write(tmp_path, first + late + LLAVA_TEMPLATE))
    reading = read(text, user("a", picture(1)), {"role": "system", "content": "be brief"}, user("b", picture(2)))
    assert [image.grid for image in reading.images] == [(3, 5), (3, 5)]
    assert reading.images[0].digest != reading.images[1].digest


def test_damaged_files_are_refused_by_their_place(text: ModelText) -> None:
    good = picture(1)
    for bad in (good[:-40], good[:60], picture(1, kind="JPEG")[:-80], good[:50] + b"xxxx" + good[54:]):
        error = refused(text, "see", good, bad)
        assert error.param == "messages[0].content[2]"
        assert error.message.startswith("messages[0].content[2]: the image cannot be read, it is damaged or cut short")


def test_other_files_are_refused(text: ModelText) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    for bad in (b"", b"hello", b"<svg/>", file.getvalue()):
        error = refused(text, bad)
        assert "is no PNG, JPEG, WEBP or GIF file" in error.message or "has no data" in error.message
    for data in ("%%%", "YWJ", "YQ==YQ==", "é" * 8, 7, None):
        with pytest.raises(PromptError, match=r"base64|no data"):
            read(text, {"role": "user", "content": [{"type": "image", "data": data}]})


def test_a_bomb_is_refused_by_its_header(text: ModelText) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    assert "60000 × 60000 pixels" in refused(text, bomb).message


def test_limits(text: ModelText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGES", 2)
    assert "3 images; 2 is the limit" in refused(text, *[picture(1)] * 3).message
    monkeypatch.setattr(images, "MAX_PROMPT_PIXELS", 40 * 24)
    assert refused(text, picture(1), picture(1)).param == "messages[0].content[1]"
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert "more than 0 MB" in refused(text, picture(1)).message


def test_a_photograph_that_lies_on_its_side_is_upright(text: ModelText) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 16), (9, 9, 9)).save(file, "JPEG", exif=exif)
    assert read(text, user(file.getvalue())).images[0].grid == (6, 2)


def test_kinds_and_modes_of_files(text: ModelText) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        assert read(text, user(picture(1, kind=kind))).images[0].grid == (3, 5)
    for mode in ("L", "P", "RGBA", "1"):
        assert read(text, user(picture(1, mode=mode))).images[0].grid == (3, 5)


def test_one_that_is_too_long_for_its_width(text: ModelText) -> None:
    error = refused(text, picture(1, 1000, 4))
    assert (error.param, "too long for its width" in error.message) == ("messages[0].content[0]", True)


def test_a_mark_in_the_text_is_refused_beside_images(text: ModelText) -> None:
    assert "contains its mark for images, <image>" in refused(text, "write <image>", picture(1)).message
    assert read(text, user("write <image>")).images == []


def test_an_image_that_the_template_drops_is_refused(tmp_path: Path) -> None:
    text = ModelText.load(write(tmp_path, LLAVA_TEMPLATE.replace("'image')", "'image') if message.role == 'user'")))
    answer = {"role": "tool", "tool_call_id": "abc", "content": user(picture(1))["content"]}
    with pytest.raises(PromptError, match="in messages of users only"):
        read(text, user("look"), answer)


def test_models_without_sight_refuse_by_place(tmp_path: Path) -> None:
    path = write(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert ModelText.load(path).capabilities["vision"] is False  # its template shows none
    write_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 512}))
    blind = ModelText.load(path)
    assert blind.capabilities["vision"] is False
    with pytest.raises(NoSight) as caught:
        read(blind, user("see", picture(1)))
    assert caught.value.param == "messages[0].content[1]"
    assert caught.value.message.startswith("messages[0].content[1]: ")


def test_shortening_leaves_out_old_images(text: ModelText) -> None:
    turns = [user(picture(seed), "?") for seed in range(4)]
    whole = read(text, *turns)
    fitting = text.read(Prompt(messages=turns, shorten=True), limit=len(whole.ids) - 10, reserve=1)
    assert [image.digest for image in fitting.images] == [image.digest for image in whole.images[1:]]


def test_a_bad_image_of_a_conversation_that_is_shortened_is_named_by_its_place_in_the_whole(text: ModelText) -> None:
    turns = [*(user(picture(seed), "?") for seed in range(3)), user(picture(3)[:40], "?")]
    with pytest.raises(PromptError) as caught:
        text.read(Prompt(messages=turns, shorten=True), limit=40, reserve=1)
    assert caught.value.param == "messages[3].content[0]"


def test_a_large_file(text: ModelText) -> None:
    file = io.BytesIO()
    Image.effect_noise((900, 900), 90).save(file, "PNG")
    assert len(file.getvalue()) > 1 << 19
    assert read(text, user(file.getvalue())).images[0].data == file.getvalue()


def test_equal_files_are_read_once(text: ModelText, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    measure = images._measure
    monkeypatch.setattr(images, "_measure", lambda data: opened.append(len(data)) or measure(data))
    data = picture(77)
    read(text, user(data, data))
    read(text, user(data))
    assert len(opened) == 1
