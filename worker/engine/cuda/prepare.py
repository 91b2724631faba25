"""A loaded model made ready to compute on a device, and compared with itself.

1. The hand-written decoder, if the model's family is described.
2. transformers' modules, with fp8 products in place of their own if so wanted.

Both use up the model; who finds the first wrong loads the model again and forbids it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from shared import log
from worker.engine import self_test
from worker.engine.cuda.attention import ChosenAttention
from worker.engine.cuda.decoder import DeviceDecoder
from worker.engine.cuda.models import Body, DeviceModel, Modules
from worker.engine.cuda.operations import choose_operations
from worker.engine.cuda.options import PAGE_TOKENS, CudaChoice
from worker.engine.cuda.surgery import operate
from worker.engine.errors import UnsupportedArchitecture, WrongResult
from worker.engine.fast.families import NotDescribed, describe
from worker.engine.prepared import Prepared, judge
from worker.engine.probe import Probe, probe

_log = log.get(__name__)


def prepare_any(load: Callable[[], nn.Module], dtype: torch.dtype, choice: CudaChoice) -> tuple[nn.Module, Prepared]:
    """Load and make ready by the best path that gives what the model itself gives; the model is used up.

    Raises:
        UnsupportedArchitecture: no path does.
    """
    attempt: CudaChoice | None = choice
    last: WrongResult | None = None
    while attempt is not None:
        model = load()
        try:
            return model, prepare(model, dtype, attempt)
        except WrongResult as error:
            _log.warning("path.wrong", path=error.path, reason=error.reason)
            attempt, last = _weaker(attempt), error
    assert last is not None
    raise UnsupportedArchitecture(last.architecture, f"through the paged cache {last.reason} from its own forward pass")


def prepare(
    model: nn.Module, dtype: torch.dtype, choice: CudaChoice, *, verify: bool = True, consume: bool = True
) -> Prepared:
    """Make a model ready.

    Args:
        model: on its device, in evaluation mode.
        dtype: of the cache.
        verify: compare with the model itself.
        consume: the model's weights are let go as they are fused; it is of no use afterwards.

    Raises:
        WrongResult: that path gives something else than the model itself; forbid it.
        UnsupportedArchitecture: none can compute the model.
    """
    found = probe(model)
    expected = self_test.reference(model, found.vocab_size) if verify else None
    attention = ChosenAttention(choice.attention)
    body: Body
    described = _describe(model) if choice.path == "fast" else None
    if described is not None:
        device = described.embedding.device
        body = decoder = DeviceDecoder(
            described,
            choose_operations(described.dtype, device, use_triton=choice.has_triton),
            attention,
            choice.quantization,
            _release if consume else _keep,
            use_triton=choice.has_triton,
        )
        path, num_bytes = "fast cuda", decoder.weights_bytes
    else:
        num_bytes = operate(model, choice.quantization, use_triton=choice.has_triton) if choice.quantization else 0
        num_bytes += sum(tensor.nbytes for tensor in model.parameters())
        body = Modules(model, list(found.layers), found.vocab_size, attention)
        path = "generic cuda"
    prepared = _prepared(path, body, found, num_bytes)
    if expected is not None:
        judge(prepared, expected, dtype, choice.quantization, type(model).__name__, block_tokens=PAGE_TOKENS)
    _log.info("path.chosen", path=path, quantization=choice.quantization, bytes=num_bytes)
    return prepared


def _prepared(path: str, body: Body, found: Probe, num_bytes: int) -> Prepared:
    shapes = list(found.layers.values())

    def make(*arguments: Any, scratch_bytes: int = 0, **options: Any) -> DeviceModel:
        return DeviceModel(body, shapes, *arguments, **options)

    return Prepared(path, shapes, num_bytes, make)


def _describe(model: nn.Module) -> Any:
    try:
        described = describe(model)
        if described.has_experts:
            raise NotDescribed("it has experts, which this path does not compute")
        return described
    except NotDescribed as error:
        _log.info("path.generic", reason=str(error))
        return None


def _weaker(choice: CudaChoice) -> CudaChoice | None:
    if choice.has_triton and choice.path == "fast":
        return replace(choice, has_triton=False, attention=tuple(way for way in choice.attention if way != "triton"))
    if choice.path == "fast":
        return replace(choice, path="generic")
    if choice.attention != ("gather",) or choice.quantization:
        return replace(choice, attention=("gather",), quantization="")
    return None


def _release(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.new_empty(0)


def _keep(module: nn.Module) -> None:
    pass
