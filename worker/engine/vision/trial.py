"""Whether a prompt with an image is computed as the model itself computes it: one small image, at every load.

The model's own forward pass gets pixels and prompt at once; ours gets them in chunks that cut the image, with its
embeddings put in place and positions of our making.
"""

import io
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine import self_test
from worker.engine.errors import UnsupportedArchitecture
from worker.engine.paged_model import PagedModel
from worker.engine.plan import Row
from worker.engine.prepared import Prepared
from worker.engine.probe import use_engine_attention
from worker.engine.sequence import Sequence
from worker.engine.vision.pixels import PixelMaker, Pixels
from worker.engine.vision.sight import Sight
from worker.models.image_layout import Tiles
from worker.models.vision import Vision
from worker.protocol import Choice, Image, Sample, Submit

_SIDE = 112  # pixels of the image
_BLOCK = 8


@torch.inference_mode()
def try_image(
    model: nn.Module, prepared: Prepared, sight: Sight, maker: PixelMaker, dtype: torch.dtype, vocab_size: int
) -> float:
    """The error found, relative to the logits.

    Raises:
        UnsupportedArchitecture: they differ by more than rounding explains.
    """
    job = _make_job(sight.vision, vocab_size)
    pixels = maker.make(job.images[0])
    try:
        expected = _compute_whole(model, job, pixels, sight.vision)
        found = _compute_chunks(prepared.make(dtype, -(-len(job.prompt) // _BLOCK), _BLOCK), sight, job, pixels)
    except Exception as error:
        reason = f"a trial with an image failed: {type(error).__name__}: {error}"
        raise UnsupportedArchitecture(type(model).__name__, reason) from error
    finally:
        sight.forget()
    errors = self_test.relative_error(found, expected)
    worst = float(errors.max() if dtype == torch.float32 else errors.median())
    if not self_test.is_close(worst, dtype):
        raise UnsupportedArchitecture(
            type(model).__name__, f"with an image its logits differ by {worst:.1%} from its own forward pass"
        )
    return worst


def _make_job(vision: Vision, vocab_size: int) -> Submit:
    """A prompt of a few words around an image with a gradient, and words where the image is parted."""
    from PIL import Image as Library

    width, height = (_SIDE, _SIDE)
    if isinstance(vision.rule, Tiles):  # which makes small images large: few tiles where it is long
        width, height = 8 * vision.rule.tile, vision.rule.tile // 8
    file = io.BytesIO()
    gradient = Library.linear_gradient("L").resize((width, height))
    Library.merge("RGB", (gradient, gradient.rotate(180), gradient)).save(file, "PNG")
    layout = vision.layout(width, height)
    words = iter(torch.randint(vocab_size, (256,), generator=torch.Generator().manual_seed(4)).tolist())
    words = (word for word in words if word != vision.token_id)
    prompt = [next(words) for _ in range(5)]
    runs = []
    for count in layout.runs:
        runs.append((len(prompt), count))
        prompt += [vision.token_id] * count + [next(words)]
    prompt += [next(words) for _ in range(6)]
    image = Image(file.getvalue(), bytes(32), layout.grid, runs)
    return Submit(key="trial", prompt=prompt, images=[image], choices=[], sample=Sample(seed=0, max_tokens=1))


def _compute_whole(model: nn.Module, job: Submit, pixels: Pixels, vision: Vision) -> Tensor:
    module: Any = model
    like = next(model.parameters())
    ids = torch.tensor([job.prompt], device=like.device)
    others = {name: tensor.to(like.device) for name, tensor in pixels.others.items()}
    if vision.turns:
        others["mm_token_type_ids"] = (ids == vision.token_id).int()
    module.set_attn_implementation("eager")
    try:
        output = module(
            input_ids=ids, pixel_values=pixels.values.to(like.device, like.dtype), use_cache=False, **others
        )
    finally:
        use_engine_attention(model)
        if hasattr(module.model, "rope_deltas"):
            module.model.rope_deltas = None  # it would be taken for that of other prompts
    return output.logits[0].float()


def _compute_chunks(paged: Any, sight: Sight, job: Submit, pixels: Pixels) -> Tensor:
    assert isinstance(paged, PagedModel)
    length = len(job.prompt)
    sequence = Sequence(job, Choice(0), arrival=0, context_limit=length + 1, block_tokens=_BLOCK)
    sequence.visual = sight.visual(job, [pixels])
    sequence.table.extend(range(-(-length // _BLOCK)))
    cuts = [0, 3, 5 + job.images[0].runs[0][1] // 2, length - 4, length]
    parts = [
        paged.forward([Row(sequence, start, stop)], lambda row: range(row.start, row.stop))
        for start, stop in itertools.pairwise(cuts)
    ]
    return torch.cat(parts).float()
