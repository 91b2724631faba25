"""The back end with a model: plan, load, test against the model itself, size the cache by what was really loaded."""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import nn

from shared import log
from worker.engine import attention
from worker.engine.backends import Backend, Report, resident_bytes
from worker.engine.cache import block_bytes
from worker.engine.cache_space import WindowCap
from worker.engine.cuda import options as cuda_options
from worker.engine.cuda import prepare as cuda_prepare
from worker.engine.cuda.runner import CudaRunner
from worker.engine.engine import Engine, Runner
from worker.engine.prepared import PathChoice, Prepared, prepare_any
from worker.engine.probe import stable_context_tokens
from worker.engine.profile import peak_bytes, warm_up
from worker.engine.runner import TorchRunner
from worker.engine.threads import num_threads
from worker.models.draft import PASS_TOKENS, check_vocabularies, draft_path
from worker.models.errors import DoesNotFit
from worker.models.files import check_directory
from worker.models.fingerprint import fingerprint
from worker.models.load import load, read_config
from worker.models.plan import FIXED_BYTES, SCRATCH_BYTES, MemoryPlan, fit, logits_bytes, plan
from worker.models.shape import read_shape
from worker.protocol import RankConfig

BLOCK_TOKENS = 32
_MAX_HOST_BYTES = 8 << 30
_HOST_SHARE = 16  # of the host's memory at most


def load_torch(config: RankConfig, report: Report) -> Backend:
    """Load the model on `config.device` within `config.memory_bytes`.

    Raises:
        ModelError: the directory, the weights or the grant is not good enough.
        UnsupportedArchitecture: the engine does not compute this model as it computes itself.
    """
    torch.set_num_threads(num_threads(config.threads))
    torch.set_num_interop_threads(1)
    device = torch.device(config.device)
    path = Path(config.path)
    check_directory(path)
    on_cuda = cuda_options.CudaChoice.from_options(config.options, config.quantization) if _is_cuda(config) else None
    choice = None if on_cuda else PathChoice.from_options(config.options, config.quantization)
    quantization = on_cuda.quantization if on_cuda else choice.quantization if choice else ""
    block_tokens = cuda_options.PAGE_TOKENS if on_cuda else BLOCK_TOKENS
    draft = draft_path(config.options, device.type)
    if draft is not None:
        check_directory(draft)
        check_vocabularies(path, draft)
    planned = plan(
        path,
        dtype=config.dtype,
        quantization=quantization,
        device_kind=device.type,
        memory_bytes=config.memory_bytes,
        block_tokens=block_tokens,
        slots=config.slots,
        prefill_tokens=config.prefill_tokens,
        context_limit=config.context_limit,
        config=read_config(path).to_dict(),
        draft=draft,
    )

    def load_model(path: Path) -> nn.Module:
        model = load(
            path,
            device=config.device,
            dtype=planned.dtype,
            attention=attention.NAME,
            progress=lambda done, total: report("read", done, total),
            leave=bool(quantization),
        )
        report("pack", 0, 0)
        return model

    dtype = getattr(torch, planned.dtype)
    second: Prepared | None = None
    if on_cuda:
        model, prepared = cuda_prepare.prepare_any(lambda: load_model(path), dtype, on_cuda)
    else:
        assert choice is not None
        model, prepared = prepare_any(lambda: load_model(path), dtype, choice)
        if draft is not None:
            _, second = prepare_any(lambda: load_model(draft), dtype, choice)
    report("warm up", 0, 0)
    most_tokens = max(1, min(config.prefill_tokens, planned.context_limit - 2))
    measured = _profile(prepared, device, dtype, config, most_tokens, block_tokens) or planned.activation_bytes
    if draft is not None and second is not None:
        most_tokens = max(1, min(PASS_TOKENS, planned.context_limit - 2, read_shape(draft).context_limit - 2))
        measured = max(measured, _profile(second, device, dtype, config, most_tokens, block_tokens) or 0)
    try:
        final = _fit_loaded(model, prepared, second, planned, config, dtype, measured)
    except DoesNotFit as error:  # by a little: the agent hears what is taken in fact, and grants that the next time
        log.get(__name__).warning(
            "memory.tight", measured=measured, planned=planned.activation_bytes, reason=str(error)
        )
        least = min(measured, planned.activation_bytes)
        final = _fit_loaded(model, prepared, second, planned, config, dtype, least)
    cap = WindowCap(final.window, final.num_window_blocks) if final.num_window_blocks else None
    num_host_blocks = _host_bytes(config, device) // (final.block_bytes + final.window_block_bytes)
    runner: Runner
    if on_cuda:
        runner = CudaRunner(
            prepared,
            device,
            dtype,
            final.num_blocks,
            block_tokens,
            cap=cap,
            num_host_blocks=num_host_blocks,
            max_rows=config.slots,
            context_limit=final.context_limit,
            choice=on_cuda,
        )
    else:
        runner = TorchRunner(
            prepared,
            device,
            dtype,
            final.num_blocks,
            block_tokens,
            cap=cap,
            num_host_blocks=num_host_blocks,
            scratch_bytes=SCRATCH_BYTES,
        )
    small = None
    if draft is not None and second is not None:
        small = TorchRunner(second, device, dtype, final.num_blocks, block_tokens, scratch_bytes=SCRATCH_BYTES)
    return Backend(
        runner=runner,
        num_blocks=final.num_blocks,
        block_tokens=block_tokens,
        context_limit=final.context_limit,
        fingerprint=fingerprint(
            path,
            backend="torch",
            dtype=planned.dtype + quantization,
            device_kind=device.type,
            version=torch.__version__,
        ),
        is_warm=True,  # by the profile
        measure=_measure(device, final.cache_bytes),
        cap=cap,
        num_host_blocks=num_host_blocks,
        # Guessed tokens leave the recorded steps, which cost more than they bring unless a measurement says otherwise.
        speculate=bool(config.options.get("speculate", not on_cuda)),
        draft=(small, read_shape(draft).context_limit) if small and draft else None,
    )


def _profile(
    prepared: Prepared,
    device: torch.device,
    dtype: torch.dtype,
    config: RankConfig,
    num_tokens: int,
    block_tokens: int,
) -> int | None:
    """What a step of so many tokens takes beside weights and cache, and a little more; None: it cannot be told."""
    num_blocks = -(-(num_tokens + 2) // block_tokens)
    runner: Runner
    if _is_cuda(config):
        runner = CudaRunner(prepared, device, dtype, num_blocks, block_tokens)
    else:
        runner = TorchRunner(prepared, device, dtype, num_blocks, block_tokens, scratch_bytes=SCRATCH_BYTES)
    engine = Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        slots=1,
        prefill_tokens=num_tokens,
        context_limit=num_tokens + 2,
        speculate=False,
    )
    peak = peak_bytes(lambda: warm_up(engine, num_tokens, runner.vocab_size), device)
    if peak is None:
        return None
    cache = 0 if device.type == "cuda" else num_blocks * block_bytes(prepared.shapes, block_tokens, dtype)
    return max(0, peak - cache) * 5 // 4 + logits_bytes(runner.vocab_size, config.slots) + SCRATCH_BYTES


def _fit_loaded(
    model: nn.Module,
    prepared: Prepared,
    second: Prepared | None,
    planned: MemoryPlan,
    config: RankConfig,
    dtype: torch.dtype,
    activation: int,
) -> MemoryPlan:
    """The plan again, with weights, blocks and steps as they are and not as headers let expect.

    The cache of a draft model (`second`) has a block for each of the first, and keeps every token in all its layers.
    """
    layers = prepared.shapes
    draft_block = block_bytes(second.shapes, planned.block_tokens, dtype) if second else 0
    return fit(
        dtype=planned.dtype,
        weights=prepared.weights_bytes + (second.weights_bytes if second else 0),
        activation=activation,
        fixed=planned.fixed_bytes,
        block_bytes=block_bytes([layer for layer in layers if not layer.window], planned.block_tokens, dtype)
        + draft_block,
        window_block_bytes=block_bytes([layer for layer in layers if layer.window], planned.block_tokens, dtype),
        window=max((layer.window for layer in layers if layer.window), default=0),
        block_tokens=planned.block_tokens,
        memory_bytes=config.memory_bytes,
        slots=config.slots,
        prefill_tokens=config.prefill_tokens,
        context_limit=min(planned.context_wanted, stable_context_tokens(model) or planned.context_wanted),
    )


def _is_cuda(config: RankConfig) -> bool:
    """Whether the path for CUDA devices is taken; the option `cuda` forbids it, to compare with."""
    return config.device.startswith("cuda") and bool(config.options.get("cuda", True))


def _host_bytes(config: RankConfig, device: torch.device) -> int:
    """Host memory for blocks that the device gives up. On a CPU both are the same memory: none, unless asked for."""
    default = 0 if device.type == "cpu" else min(_MAX_HOST_BYTES, psutil.virtual_memory().total // _HOST_SHARE)
    return int(config.options.get("host_cache_bytes", default))


def _measure(device: torch.device, cache_bytes: int) -> Callable[[], int]:
    """How to tell what the rank takes on its device; on a CPU with the whole cache, which fills only with use."""
    if device.type == "cuda":  # the allocator knows its own part; the context is not visible from within
        return lambda: torch.cuda.memory_reserved(device) + FIXED_BYTES["cuda"]
    return lambda: resident_bytes() + cache_bytes
