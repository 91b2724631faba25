"""Images of a job without tensors: positions, names for the prefix index, how far a step may go, what is kept."""

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from worker.engine.vision.features import FeatureCache
from worker.engine.vision.positions import Positions
from worker.engine.vision.visual import Glance, Seen, Visual
from worker.protocol import Image

A, B = bytes(range(32)), bytes(range(32, 64))


def image(digest: bytes, *runs: tuple[int, int], grid: tuple[int, int] = (1, 1)) -> Image:
    return Image(b"", digest, grid, list(runs))


@pytest.mark.parametrize(
    ("model", "config"),
    [(Qwen2VLModel, Qwen2VLConfig), (Qwen2_5_VLModel, Qwen2_5_VLConfig), (Qwen3VLModel, Qwen3VLConfig)],
    ids=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"],
)
@pytest.mark.parametrize(
    ("num_prompt", "images"),
    [(20, [(3, 2, 4)]), (30, [(1, 3, 2), (9, 2, 5)]), (12, [(0, 3, 3)]), (21, [(2, 1, 6), (15, 2, 3)])],
)
def test_positions_are_those_of_the_model(model, config, num_prompt, images):
    kinds = torch.zeros(1, num_prompt, dtype=torch.int)
    for first, rows, columns in images:
        kinds[0, first : first + rows * columns] = 1
    bare = model.__new__(model)
    torch.nn.Module.__init__(bare)
    bare.config = config()
    grids = torch.tensor([[1, 2 * rows, 2 * columns] for _, rows, columns in images])
    expected, delta = bare.get_rope_index(kinds.long(), mm_token_type_ids=kinds, image_grid_thw=grids)
    positions = Positions(num_prompt, images)
    assert [positions.part(which, 0, num_prompt) for which in range(3)] == expected[:, 0].tolist()
    assert positions.delta == int(delta)
    assert positions.part(1, num_prompt - 2, num_prompt + 3)[2:] == [
        number + positions.delta for number in range(num_prompt, num_prompt + 3)
    ]


def visual(*images: Image, known: tuple[bytes, ...] = ()) -> Visual:
    return Visual([Seen(one) for one in images], None, set(known))


def test_an_images_tokens_are_named_by_what_it_shows():
    ids = list(range(100, 120))
    a, b = visual(image(A, (2, 9))), visual(image(B, (2, 9)))
    keys = a.keys(ids)
    assert keys[:2] == ids[:2] and keys[11:] == ids[11:]
    assert all(key < 0 for key in keys[2:11])
    assert len(set(keys[2:6])) == 4
    assert not set(keys[2:11]) & set(b.keys(ids)[2:11])
    assert visual(image(A, (2, 4), (7, 5))).keys(ids)[2:6] == keys[2:6]
    assert visual(image(A, (2, 4), (7, 5))).keys(ids)[7:12] == keys[6:11]


def test_overlaps_of_a_chunk():
    both = visual(image(A, (2, 3), (6, 3)), image(B, (12, 4)))
    found = [(one.image.digest, low, high, at) for one, low, high, at in both.overlaps(3, 13)]
    assert found == [(A, 3, 5, 1), (A, 6, 9, 3), (B, 12, 13, 0)]
    assert list(both.overlaps(9, 12)) == []
    assert [at for *_, at in both.overlaps(14, 20)] == [2]


def test_a_step_ends_before_the_first_image_that_is_too_many():
    two = visual(image(A, (2, 3)), image(B, (8, 4)))
    assert two.reach(0, 20, Glance(5)) == 8
    assert two.reach(0, 20, Glance(7)) == 20
    assert two.reach(0, 20, Glance(1)) == 8  # one is always allowed
    assert two.reach(0, 2, Glance(0)) == 2
    spent = Glance(1)
    assert spent.take(A, 3)
    assert two.reach(0, 20, spent) == 8  # the same image of another sequence costs nothing
    assert visual(image(B, (8, 4))).reach(8, 20, spent) == 8
    assert visual(image(A, (2, 3)), image(B, (8, 4)), known=(A, B)).reach(0, 20, spent) == 20


def test_kept_features_are_bounded_and_the_newest_always_stays():
    cache = FeatureCache(100)
    for number in range(4):
        cache.put(bytes([number]), [torch.zeros(10)])  # 40 bytes each
        assert cache.get(bytes([0])) is not None  # used each time, so another goes
    assert cache.num_bytes == 80
    assert bytes([3]) in cache
    cache.put(b"large", [torch.zeros(100), torch.zeros(100)])
    assert b"large" in cache and cache.num_bytes == 800
    cache.put(b"small", [torch.zeros(1)])
    assert b"large" not in cache and cache.num_bytes == 4
