"""The back end with a model: plan, load, test against the model itself, size the cache by what was really loaded."""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import nn

from shared import log
from worker.engine import attention
from worker.engine.backends import Backend, Report, taken_bytes
from worker.engine.cache import block_bytes
from worker.engine.cache_space import WindowCap
from worker.engine.cuda import options as cuda_options
from worker.engine.cuda import prepare as cuda_prepare
from worker.engine.cuda.runner import CudaRunner
from worker.engine.engine import Engine, Runner
from worker.engine.parallel.group import Group
from worker.engine.parallel.messages import Load, Measure
from worker.engine.parallel.prepare import prepare_any as prepare_shares
from worker.engine.prepared import PathChoice, Prepared, prepare_any
from worker.engine.probe import stable_context_tokens
from worker.engine.process import torch_device
from worker.engine.profile import peak_bytes, trial_tokens, warm_up
from worker.engine.runner import TorchRunner
from worker.engine.threads import num_threads
from worker.engine.vision.prepare import prepare_seeing
from worker.engine.vision.sight import Sight
from worker.models.division import Division
from worker.models.draft import PASS_TOKENS, check_vocabularies, draft_path
from worker.models.errors import DoesNotFit, NotServable
from worker.models.files import check_directory
from worker.models.fingerprint import fingerprint
from worker.models.load import load, read_config
from worker.models.plan import SCRATCH_BYTES, MemoryPlan, fit, logits_bytes, plan
from worker.models.shape import read_shape
from worker.models.vision import read_vision
from worker.protocol import RankConfig

BLOCK_TOKENS = 32
_MAX_HOST_BYTES = 8 << 30
_HOST_SHARE = 16  # of the host's memory at most


def load_torch(config: RankConfig, report: Report, group: Group | None = None) -> Backend:
    """Load the model on `config.device` within `config.memory_bytes`; with a group, this rank's share of it.

    Raises:
        ModelError: the directory, the weights or the grant is not good enough.
        UnsupportedArchitecture: the engine does not compute this model as it computes itself.
    """
    torch.set_num_threads(num_threads(config.threads))
    torch.set_num_interop_threads(1)
    device = torch.device(torch_device(config.device))
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
    found = read_config(path).to_dict()
    eyes = read_vision(path, config.options, found)
    if eyes is not None and quantization and device.type == "cuda":
        raise NotServable(f"{path} takes images, and such models are not quantised on CUDA devices; leave it out")
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
        config=found,
        draft=draft,
        options=config.options,
        devices=group.size if group else 1,
    )

    def load_model(path: Path) -> nn.Module:
        stage, read = "read", (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal read
            read = (done, total)
            report(stage, done, total)

        model = load(
            path,
            device=str(device),
            dtype=planned.dtype,
            attention=attention.NAME,
            progress=progress,
            leave=choice is not None and (choice.is_packed or bool(quantization)),
        )
        stage = "pack"  # which reads what was left in the files
        report(stage, *read)
        return model

    dtype = getattr(torch, planned.dtype)
    second: Prepared | None = None
    sight: Sight | None = None
    if group is not None:
        wanted = Load(
            path=config.path,
            dtype=planned.dtype,
            quantization=quantization,
            is_packed=choice is None or choice.is_packed,
            is_native=choice is None or choice.is_native,
            is_device=bool(on_cuda and on_cuda.path == "fast"),
            options=config.options,
        )
        division = Division.of(path, group.size, config=found)
        model, prepared = prepare_shares(
            group, wanted, division, device, lambda done, total: report("read", done, total)
        )
    elif eyes is not None:
        assert choice is not None
        model, prepared, sight = prepare_seeing(
            lambda: load_model(path),
            dtype,
            choice,
            path=path,
            vision=eyes,
            slots=config.slots,
            step_tokens=config.prefill_tokens,
        )
    elif on_cuda:
        model, prepared = cuda_prepare.prepare_any(lambda: load_model(path), dtype, on_cuda)
    else:
        assert choice is not None
        model, prepared = prepare_any(lambda: load_model(path), dtype, choice)
    if draft is not None and group is None and not on_cuda:
        assert choice is not None
        _, second = prepare_any(lambda: load_model(draft), dtype, choice)
    report("warm up", 0, 0)
    most_tokens = max(1, min(config.prefill_tokens, planned.context_limit - 2))
    measured = _profile(prepared, device, dtype, config, most_tokens, block_tokens) or planned.activation_bytes
    measured = max(measured, planned.tower_bytes)
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
    if on_cuda and group is None:
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
            dtype=planned.dtype + quantization + (f" over {group.size}" if group else ""),
            device_kind=device.type,
            version=torch.__version__,
        ),
        is_warm=True,  # by the profile
        measure=_measure(device, final.cache_bytes, group),
        cap=cap,
        num_host_blocks=num_host_blocks,
        # Guessed tokens leave the recorded steps, which cost more than they bring unless a measurement says otherwise.
        speculate=bool(config.options.get("speculate", not on_cuda)),
        draft=(small, read_shape(draft).context_limit) if small and draft else None,
        sight=sight,
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
    tried = trial_tokens(num_tokens, device)
    num_blocks = -(-(tried + 2) // block_tokens)
    runner: Runner
    if _is_cuda(config) and not config.followers:
        runner = CudaRunner(prepared, device, dtype, num_blocks, block_tokens)
    else:
        runner = TorchRunner(prepared, device, dtype, num_blocks, block_tokens, scratch_bytes=SCRATCH_BYTES)
    engine = Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        slots=1,
        prefill_tokens=tried,
        context_limit=tried + 2,
        speculate=False,
    )
    peak = peak_bytes(lambda: warm_up(engine, tried, runner.vocab_size), device)
    if peak is None:
        return None
    cache = 0 if device.type == "cuda" else num_blocks * block_bytes(prepared.shapes, block_tokens, dtype)
    step = max(0, peak - cache) * num_tokens // tried
    return step * 5 // 4 + logits_bytes(runner.vocab_size, config.slots) + SCRATCH_BYTES


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
    """Whether the path for CUDA devices is taken; the option `cuda` forbids it, to compare with. None with eyes is."""
    if not config.device.startswith("cuda") or not config.options.get("cuda", True):
        return False
    return read_vision(Path(config.path), config.options) is None


def _host_bytes(config: RankConfig, device: torch.device) -> int:
    """Host memory for blocks that the device gives up. On a CPU both are the same memory: none, unless asked for."""
    default = 0 if device.type == "cpu" else min(_MAX_HOST_BYTES, psutil.virtual_memory().total // _HOST_SHARE)
    return int(config.options.get("host_cache_bytes", default))


def _measure(device: torch.device, cache_bytes: int, group: Group | None) -> Callable[[], int]:
    """How to tell what the rank takes on its device; of several, the one that takes most."""

    def measure() -> int:
        taken = [taken_bytes(str(device), cache_bytes)]
        if group is not None:
            group.send(Measure())
            taken += [done.num_bytes for done in group.answers()]
        return max(taken)

    return measure
