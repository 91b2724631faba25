"""The back end with a model: plan, load, test against the model itself, size the cache by what was really loaded."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from worker.engine import attention
from worker.engine.backends import Backend, Report, resident_bytes
from worker.engine.probe import stable_context_tokens
from worker.engine.runner import TorchRunner
from worker.models.files import check_directory
from worker.models.fingerprint import fingerprint
from worker.models.load import load, read_config
from worker.models.plan import FIXED_BYTES, SCRATCH_BYTES, MemoryPlan, fit, plan
from worker.protocol import RankConfig

BLOCK_TOKENS = 32


def load_torch(config: RankConfig, report: Report) -> Backend:
    """Load the model on `config.device` within `config.memory_bytes`.

    Raises:
        ModelError: the directory, the weights or the grant is not good enough.
        UnsupportedArchitecture: the engine does not compute this model as it computes itself.
    """
    torch.set_num_threads(max(1, config.threads))
    torch.set_num_interop_threads(1)
    device = torch.device(config.device)
    path = Path(config.path)
    check_directory(path)
    planned = plan(
        path,
        dtype=config.dtype,
        device_kind=device.type,
        memory_bytes=config.memory_bytes,
        block_tokens=BLOCK_TOKENS,
        slots=config.slots,
        prefill_tokens=config.prefill_tokens,
        context_limit=config.context_limit,
        config=read_config(path).to_dict(),
    )
    model = load(
        path,
        device=config.device,
        dtype=planned.dtype,
        attention=attention.NAME,
        progress=lambda done, total: report("read", done, total),
    )
    report("warm up", 0, 0)
    dtype = getattr(torch, planned.dtype)
    final = _fit_loaded(model, planned, config, dtype)
    runner = TorchRunner(model, device, dtype, final.num_blocks, BLOCK_TOKENS, scratch_bytes=SCRATCH_BYTES)
    return Backend(
        runner=runner,
        num_blocks=final.num_blocks,
        block_tokens=BLOCK_TOKENS,
        context_limit=final.context_limit,
        fingerprint=fingerprint(
            path, backend="torch", dtype=planned.dtype, device_kind=device.type, version=torch.__version__
        ),
        is_warm=False,
        measure=_measure(device),
    )


def _fit_loaded(model: nn.Module, planned: MemoryPlan, config: RankConfig, dtype: torch.dtype) -> MemoryPlan:
    """The plan again, with weights and blocks as they are and not as headers let expect."""
    return fit(
        dtype=planned.dtype,
        weights=sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()),
        activation=planned.activation_bytes,
        fixed=planned.fixed_bytes,
        block_bytes=TorchRunner.kv_block_bytes(model, BLOCK_TOKENS, dtype),
        block_tokens=BLOCK_TOKENS,
        memory_bytes=config.memory_bytes,
        slots=config.slots,
        context_limit=min(planned.context_wanted, stable_context_tokens(model) or planned.context_wanted),
    )


def _measure(device: torch.device) -> Callable[[], int]:
    """How to tell what the rank takes on its device."""
    if device.type == "cuda":  # the allocator knows its own part; the context is not visible from within
        return lambda: torch.cuda.memory_reserved(device) + FIXED_BYTES["cuda"]
    return resident_bytes
