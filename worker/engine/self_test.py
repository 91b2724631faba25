"""Whether the packed, paged forward pass computes what the model itself computes.

The judgement is by trial and not by name: two short random prompts go through the cache in chunks, packed beside each
other, and the logits are compared with the model's own eager forward pass over each whole prompt. State that lives
outside of attention, masks other than causal ones, biases by position and much else show at once.
"""

import torch
from torch import Tensor, nn

from worker.engine.errors import UnsupportedArchitecture
from worker.engine.paged_model import PagedModel
from worker.engine.plan import Row
from worker.engine.probe import use_engine_attention
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit

_LENGTHS = (37, 29)
_CUTS = ((0, 9, 36, 37), (0, 20, 21, 29))  # chunks of each prompt, one per step
_BLOCK_TOKENS = 8
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}  # of the logits' own size


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
    paged = PagedModel(model, dtype, num_blocks=16, block_tokens=_BLOCK_TOKENS)
    generator = torch.Generator().manual_seed(20)
    prompts = [torch.randint(paged.vocab_size, (length,), generator=generator).tolist() for length in _LENGTHS]
    try:
        ours = _compute_paged(paged, prompts)
        theirs = [_compute_eager(model, prompt) for prompt in prompts]
    except Exception as error:
        raise UnsupportedArchitecture(architecture, f"a trial run failed: {type(error).__name__}: {error}") from error
    finally:
        use_engine_attention(model)
    errors = torch.cat([_relative_error(a, b) for a, b in zip(ours, theirs, strict=True)])
    # In narrow types a mixture of experts may route a single token otherwise: there the median judges.
    worst = float(errors.max() if dtype == torch.float32 else errors.median())
    if not worst <= _TOLERANCE.get(dtype, 0.1):
        raise UnsupportedArchitecture(
            architecture,
            f"through the paged cache its logits differ by {worst:.1%} from its own forward pass. It may keep state "
            "outside of attention, or use a mask or position bias that this engine does not know.",
        )
    return worst


def _compute_paged(paged: PagedModel, prompts: list[list[int]]) -> list[Tensor]:
    sequences = []
    for number, prompt in enumerate(prompts):
        job = Submit(key=str(number), prompt=prompt, choices=[], sample=Sample(seed=0, max_tokens=1))
        sequence = Sequence(job, Choice(0), arrival=0, context_limit=len(prompt) + 1, block_tokens=_BLOCK_TOKENS)
        sequence.table.extend(range(number, 2 * -(-len(prompt) // _BLOCK_TOKENS), 2))  # interleaved: many runs
        sequences.append(sequence)
    chunks: list[list[Tensor]] = [[] for _ in prompts]
    for step in range(len(_CUTS[0]) - 1):
        rows = [Row(sequence, cuts[step], cuts[step + 1]) for sequence, cuts in zip(sequences, _CUTS, strict=True)]
        logits = paged.forward(rows, lambda row: range(row.start, row.stop))
        sizes = [row.stop - row.start for row in rows]
        for held, chunk in zip(chunks, torch.split(logits, sizes), strict=True):
            held.append(chunk.float())
    return [torch.cat(held) for held in chunks]


def _compute_eager(model: nn.Module, prompt: list[int]) -> Tensor:
    model.set_attn_implementation("eager")  # type: ignore[operator]
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits
    return logits[0].float()


def _relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Error of each position's logits [positions, vocabulary], relative to their spread."""
    spread = theirs - theirs.mean(-1, keepdim=True)
    return (ours - theirs).norm(dim=-1) / spread.norm(dim=-1).clamp_min(1e-6)
