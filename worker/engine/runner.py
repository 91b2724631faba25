"""Step plans through a model, on tensors: forward pass, then sampling."""

from collections.abc import Sequence

import torch
from torch import nn

from worker.engine.cache import block_bytes
from worker.engine.cache_space import WindowCap
from worker.engine.errors import DeviceLost, OutOfMemory
from worker.engine.limit import is_want_of_memory
from worker.engine.plan import Sampled, StepPlan, Transfer
from worker.engine.prepared import AS_IS, PathChoice, Prepared, prepare
from worker.engine.probe import probe
from worker.engine.sampler import sample
from worker.engine.self_test import self_test


class TorchRunner:
    """Runs plans: forward pass, then sampling. See `PagedModel` for the arguments.

    A model that is not `Prepared` is made ready here, by `choice`, and stays what it is.

    Raises:
        UnsupportedArchitecture: the model does not compute the same through the paged cache as on its own.
    """

    def __init__(
        self,
        model: nn.Module | Prepared,
        device: torch.device | str,
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        *,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
        scratch_bytes: int = 64 << 20,
        verify: bool = True,
        choice: PathChoice = AS_IS,
    ) -> None:
        if isinstance(model, nn.Module):
            if next(model.parameters()).device != torch.device(device):
                model.to(device)
            model.eval()
            if verify:
                self_test(model, dtype)
            model = prepare(model, dtype, choice, verify=verify and choice != AS_IS, consume=False)
        self._model = model.make(
            dtype, num_blocks, block_tokens, scratch_bytes=scratch_bytes, cap=cap, num_host_blocks=num_host_blocks
        )
        self.vocab_size = self._model.vocab_size

    @staticmethod
    def kv_block_bytes(model: nn.Module, block_tokens: int, dtype: torch.dtype | None = None) -> int:
        """Bytes that one cache block takes over all layers; `dtype` of the cache, by default the model's."""
        dtype = dtype or next(model.parameters()).dtype
        return block_bytes(probe(model).layers.values(), block_tokens, dtype)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sampled]:
        """Compute the plan's tokens and sample at each kept position, in order."""
        turns = plan.turns
        try:
            logits = self._model.forward(plan.rows, plan.kept)
            return sample(logits, turns) if turns else []
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        except (MemoryError, RuntimeError) as error:  # a CPU that is held to its grant
            if not is_want_of_memory(error):
                raise
            raise OutOfMemory(str(error)) from error

    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks of the cache, one after the other."""
        try:
            self._model.transfer(transfers)
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
