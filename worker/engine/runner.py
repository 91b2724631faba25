"""Step plans through a model, on tensors: forward pass, then sampling."""

import torch
from torch import nn

from worker.engine.cache import block_bytes
from worker.engine.errors import DeviceLost
from worker.engine.paged_model import PagedModel
from worker.engine.plan import Row, Sampled, StepPlan
from worker.engine.probe import probe
from worker.engine.sampler import sample
from worker.engine.self_test import self_test


class TorchRunner:
    """Runs plans: forward pass, then sampling. See `PagedModel` for the arguments.

    Raises:
        UnsupportedArchitecture: the model does not compute the same through the paged cache as on its own.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str,
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        *,
        scratch_bytes: int = 64 << 20,
        verify: bool = True,
    ) -> None:
        if next(model.parameters()).device != torch.device(device):
            model.to(device)
        model.eval()
        if verify:
            self_test(model, dtype)
        self._model = PagedModel(model, dtype, num_blocks, block_tokens, scratch_bytes)
        self.vocab_size = self._model.vocab_size

    @staticmethod
    def kv_block_bytes(model: nn.Module, block_tokens: int, dtype: torch.dtype | None = None) -> int:
        """Bytes that one cache block takes over all layers; `dtype` of the cache, by default the model's."""
        dtype = dtype or next(model.parameters()).dtype
        return block_bytes(probe(model).layers.values(), block_tokens, dtype)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sampled]:
        """Compute the plan's tokens and sample for the rows that ask for it, in order."""
        sampled = plan.sampled
        try:
            logits = self._model.forward(plan.rows, _last_if_sampled)
            return sample(logits, [row.sequence for row in sampled]) if sampled else []
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise


def _last_if_sampled(row: Row) -> range:
    return range(row.stop - 1, row.stop) if row.is_sampled else range(0)
