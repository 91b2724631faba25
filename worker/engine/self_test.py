"""Whether the packed, paged forward pass computes what the model itself computes.

The judgement is by trial and not by name: two short random prompts go through the cache in chunks, packed beside each
other, and the logits are compared with the model's own eager forward pass over each whole prompt. State that lives
outside of attention, masks other than causal ones, biases by position and much else show at once.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from worker.engine.errors import UnsupportedArchitecture
from worker.engine.paged_model import PagedModel
from worker.engine.plan import Row
from worker.engine.probe import use_engine_attention
from worker.engine.sequence import Sequence
from worker.engine.wide import WideProducts
from worker.protocol import Choice, Sample, Submit

_LENGTHS = (37, 29)
_CUTS = ((0, 9, 36, 37), (0, 20, 21, 29))  # chunks of each prompt, one per step
TEST_BLOCKS, TEST_BLOCK_TOKENS = 16, 8
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}  # of the logits' own size
_QUANTIZED = {"int8": 0.3, "fp8": 0.3, "int4": 0.9}  # weights that were rounded; chance would be 1.4


class Forwards(Protocol):
    """A forward pass over a paged cache."""

    vocab_size: int

    def forward(self, rows: list[Row], keep: Callable[[Row], range], /) -> Tensor:
        """Logits of the positions to keep."""
        ...


@torch.inference_mode()
def self_test(model: nn.Module, dtype: torch.dtype) -> float:
    """Compare both ways on random prompts; returns the error found, relative to the logits.

    Args:
        model: on its device, in evaluation mode; its attention is left set to this engine's.
        dtype: of the cache.

    Raises:
        UnsupportedArchitecture: they differ by more than rounding explains.
    """
    architecture = type(model).__name__
    paged = PagedModel(model, dtype, num_blocks=TEST_BLOCKS, block_tokens=TEST_BLOCK_TOKENS)
    expected = reference(model, paged.vocab_size)
    try:
        worst = compare(paged, expected, dtype)
    except Exception as error:
        raise UnsupportedArchitecture(architecture, f"a trial run failed: {type(error).__name__}: {error}") from error
    if not worst <= _TOLERANCE.get(dtype, 0.1):
        raise UnsupportedArchitecture(
            architecture,
            f"through the paged cache its logits differ by {worst:.1%} from its own forward pass. It may keep state "
            "outside of attention, or use a mask or position bias that this engine does not know.",
        )
    return worst


@torch.inference_mode()
def reference(model: nn.Module, vocab_size: int) -> list[Tensor]:
    """The model's own logits of each test prompt. Raises UnsupportedArchitecture if it cannot compute them."""
    try:
        with WideProducts():
            return [_compute_eager(model, prompt) for prompt in _prompts(vocab_size)]
    except Exception as error:
        reason = f"a trial run failed: {type(error).__name__}: {error}"
        raise UnsupportedArchitecture(type(model).__name__, reason) from error
    finally:
        use_engine_attention(model)


@torch.inference_mode()
def compare(
    paged: Forwards,
    expected: list[Tensor],
    dtype: torch.dtype,
    quantization: str = "",
    *,
    block_tokens: int = TEST_BLOCK_TOKENS,
) -> float:
    """How far a forward pass over `TEST_BLOCKS` blocks is from the reference, relative to the logits."""
    ours = _compute_paged(paged, _prompts(paged.vocab_size), block_tokens)
    errors = torch.cat([relative_error(a, b[kept]) for (kept, a), b in zip(ours, expected, strict=True)])
    # In narrow types a mixture of experts may route a single token otherwise: there the median judges.
    return float(errors.max() if dtype == torch.float32 and not quantization else errors.median())


def is_close(error: float, dtype: torch.dtype, quantization: str = "") -> bool:
    """Whether rounding, or the quantisation, explains such an error."""
    return error <= max(_TOLERANCE.get(dtype, 0.1), _QUANTIZED.get(quantization, 0.0))


def _prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(20)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in _LENGTHS]


def _keep(row: Row) -> range:
    """All positions, or the later half: what is not kept takes a shorter way through the last layer."""
    return range(row.start if row.start % 2 else (row.start + row.stop) // 2, row.stop)


def _compute_paged(paged: Forwards, prompts: list[list[int]], block_tokens: int) -> list[tuple[list[int], Tensor]]:
    """Of each prompt: the positions that were kept, and their logits."""
    sequences = []
    for number, prompt in enumerate(prompts):
        job = Submit(key=str(number), prompt=prompt, choices=[], sample=Sample(seed=0, max_tokens=1))
        sequence = Sequence(job, Choice(0), arrival=0, context_limit=len(prompt) + 1, block_tokens=block_tokens)
        sequence.table.extend(range(number, 2 * -(-len(prompt) // block_tokens), 2))  # interleaved: many runs
        sequences.append(sequence)
    kept: list[list[int]] = [[] for _ in prompts]
    chunks: list[list[Tensor]] = [[] for _ in prompts]
    for step in range(len(_CUTS[0]) - 1):
        rows = [Row(sequence, cuts[step], cuts[step + 1]) for sequence, cuts in zip(sequences, _CUTS, strict=True)]
        logits = paged.forward(rows, _keep)
        for number, chunk in enumerate(torch.split(logits, [len(_keep(row)) for row in rows])):
            kept[number] += _keep(rows[number])
            chunks[number].append(chunk.float())
    return [(positions, torch.cat(held)) for positions, held in zip(kept, chunks, strict=True)]


def _compute_eager(model: nn.Module, prompt: list[int]) -> Tensor:
    model.set_attn_implementation("eager")  # type: ignore[operator]
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits
    return logits[0].float()


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Error of each position's logits [positions, vocabulary], relative to their spread."""
    spread = theirs - theirs.mean(-1, keepdim=True)
    return (ours - theirs).norm(dim=-1) / spread.norm(dim=-1).clamp_min(1e-6)
