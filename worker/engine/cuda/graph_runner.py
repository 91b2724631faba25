"""Decode steps recorded once for each size of batch: forward pass, choice of tokens, and the tokens' way back in.

A step of n rows is replayed in the smallest bucket that has room for n; the rows beyond are fillers that write to a
page of nobody's. There are two recordings of each bucket: one for rows that all take the likeliest token, and one that
also draws. The tokens stay on the device, where the next step can take them up before the host has read them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.engine.cuda.capture import Reading, Recorder
from worker.engine.cuda.choosing import Choose
from worker.engine.cuda.static import Decoding, Sizes, StaticInputs
from worker.engine.cuda.step import StepInputs

_SMALL = (1, 2, 4, 8)
_STEP = 8
_MAX_BUCKET = 256


def buckets(max_rows: int) -> list[int]:
    """Sizes of batches to record for up to `max_rows` rows: 1, 2, 4, 8, 16, 24, 32 and so on."""
    top = min(max_rows, _MAX_BUCKET)
    sizes = [size for size in (*_SMALL, *range(2 * _STEP, _MAX_BUCKET + 1, _STEP)) if size < top]
    return [*sizes, top]


class GraphRunner:
    """Replays decode steps.

    Args:
        compute: the forward pass, for inputs of one token a row.
        choose: of tokens.
        recorder: of the device.
        sizes: of the static inputs; its `max_rows` is the largest bucket.
    """

    def __init__(
        self,
        compute: Callable[[StepInputs], Tensor],
        choose: Choose,
        recorder: Recorder,
        sizes: Sizes,
        vocab_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._compute = compute
        self._choose = choose
        self._recorder = recorder
        self._buckets = buckets(sizes.max_rows)
        self._static = StaticInputs(recorder, sizes, device)
        self._logits = torch.zeros(sizes.max_rows, vocab_size, dtype=dtype, device=device)
        self._recordings: dict[tuple[int, bool], Callable[[], None]] = {}

    @property
    def max_rows(self) -> int:
        """Of one step."""
        return self._buckets[-1]

    @torch.inference_mode()
    def record(self) -> None:
        """Record every bucket, the largest first, so that the others fit into its memory."""
        for size in reversed(self._buckets):
            self._static.put([], size)
            for is_random in (True, False):
                self._recordings[size, is_random] = self._recorder.record(self._work(size, is_random))

    def _work(self, size: int, is_random: bool) -> Callable[[], None]:
        def work() -> None:
            logits = self._compute(self._static.inputs(size))
            self._logits[:size].copy_(logits)
            settings = self._static.settings[:, :size]
            self._static.tokens[:size].copy_(self._choose(logits, settings, is_random=is_random))

        return work

    @torch.inference_mode()
    def start(self, rows: Sequence[Decoding]) -> Reading:
        """Start a step. Rows may carry over the tokens of the step that was started last."""
        size = next(size for size in self._buckets if size >= len(rows))
        is_random = any(row.is_random for row in rows)
        self._static.put(rows, size)
        self._recordings[size, is_random]()
        return self._recorder.read(self._static.tokens[: len(rows)])

    def logits(self, rows: Sequence[int]) -> Tensor:
        """A copy of the logits that the step started last has of these of its rows."""
        return self._logits[torch.tensor(rows, device=self._logits.device)].float()
