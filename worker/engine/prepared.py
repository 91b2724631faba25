"""A loaded model made ready to compute: which path it takes, its weights packed, its results compared with its own.

1. The fast path, if the model's family is described: in the native library where there is one, else in torch.
2. The general path with faster modules in place of the model's own.
3. The general path with the model's modules as they are.

Packing uses up the model, so a path that turns out wrong cannot be left for the next one: whoever loads the model loads
it again and forbids that path (see `torch_backend`).

The fast path computes every layer of a kind by the same code, so it is compared on the first layers, as many as show
all kinds; the general path, where layers may do anything, on the whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shared import log
from worker.engine import self_test
from worker.engine.errors import UnsupportedArchitecture, WrongResult
from worker.engine.fast.description import Decoder
from worker.engine.fast.families import NotDescribed, describe
from worker.engine.fast.fast_model import FastModel
from worker.engine.fast.native_decoder import NativeDecoder, unfit_reason
from worker.engine.fast.plain_decoder import PlainDecoder
from worker.engine.linears import LinearChoice
from worker.engine.native import library
from worker.engine.native.matrix import Kind
from worker.engine.paged_model import PagedModel
from worker.engine.plan import Row, Transfer
from worker.engine.probe import LayerShape, probe
from worker.engine.shallow import first_layers, num_telling
from worker.engine.surgery import operate
from worker.models import mapped

_log = log.get(__name__)
QUANTIZATIONS = ("", "int8", "int4", "fp8")


class Computes(Protocol):
    """A model with its paged cache."""

    vocab_size: int

    def forward(self, rows: Sequence[Row], keep: Callable[[Row], range], /) -> Tensor:
        """Logits of the positions that `keep` names for each row, [positions, vocabulary]."""
        ...

    def transfer(self, transfers: Sequence[Transfer], /) -> None:
        """Move blocks of the cache."""
        ...


@dataclass(frozen=True, slots=True)
class PathChoice:
    """What may be used. Each piece can be switched off, to compare any two.

    Args:
        path: "fast" takes the general path only for models that it does not know.
        is_native: the native library.
        is_packed: other layouts of weights, and other modules in place of the model's own.
        quantization: of the linear layers' weights: "", int8 or int4.
    """

    path: str = "fast"
    is_native: bool = True
    is_packed: bool = True
    quantization: str = ""

    @staticmethod
    def from_options(options: Mapping[str, Any], quantization: str) -> "PathChoice":
        """From a rank's options (path, native, packed, quantization) and its model's record."""
        choice = PathChoice(
            path=str(options.get("path", "fast")),
            is_native=bool(options.get("native", True)),
            is_packed=bool(options.get("packed", True)),
            quantization=str(options.get("quantization", quantization) or ""),
        )
        if choice.path not in ("fast", "generic"):
            raise ValueError(f"path must be fast or generic, not {choice.path!r}")
        if choice.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization must be int8, int4, fp8 or empty, not {choice.quantization!r}")
        if choice.quantization == "fp8":
            _log.warning(
                "quantization.left_out", kind="fp8", reason="it is for CUDA devices; the weights stay as they are"
            )
            return replace(choice, quantization="")
        return choice

    @property
    def linears(self) -> LinearChoice:
        """The same for linear layers."""
        return LinearChoice(self.quantization, is_packed=self.is_packed, is_native=self.is_native)


AS_IS = PathChoice(path="generic", is_native=False, is_packed=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to compute, without its cache."""

    path: str  # fast native, fast torch, generic
    shapes: list[LayerShape]
    weights_bytes: int
    make: Callable[..., Computes]  # the arguments of `FastModel` after its shapes
    make_trial: Callable[..., Computes] | None = None  # of the layers that are compared, where these are not all


def prepare(model: nn.Module, dtype: torch.dtype, choice: PathChoice, *, verify: bool, consume: bool) -> Prepared:
    """Make a model ready.

    Args:
        model: on its device, in evaluation mode.
        dtype: of the cache.
        verify: compare with the model itself.
        consume: the model's weights are let go as they are packed, so that they are in memory once; it is of no use
            afterwards.

    Raises:
        WrongResult: that path gives something else than the model itself; forbid it.
        UnsupportedArchitecture: none can compute the model.
    """
    decoder = _describe(model, choice) if choice.path == "fast" else None
    body: Any = model.model if decoder is not None else None
    num_layers = num_telling(body.layers) if decoder is not None else 0
    with first_layers(body, num_layers) if decoder is not None else nullcontext():
        found = probe(model)
        expected = self_test.reference(model, found.vocab_size) if verify else None
    shapes = list(found.layers.values())
    if decoder is not None:
        if shapes != decoder.shapes[:num_layers]:
            raise WrongResult(type(model).__name__, "fast", "its layers keep something else than is described")
        prepared = _prepare_fast(model, decoder, choice, num_layers, consume=consume)
    else:
        prepared = _prepare_generic(model, choice, shapes)
    if held := mapped.of(model):
        held.end(model)
    if expected is not None:
        judge(prepared, expected, dtype, choice.quantization, type(model).__name__)
    _log.info("path.chosen", path=prepared.path, quantization=choice.quantization, bytes=prepared.weights_bytes)
    return prepared


def weaker(choice: PathChoice) -> PathChoice | None:
    """What to try when a choice gave a wrong result; None: nothing is left."""
    if choice.path == "fast" and choice.is_native:
        return replace(choice, is_native=False)
    if choice.path == "fast":
        return replace(choice, path="generic")
    if choice.is_packed:
        return replace(choice, is_packed=False, is_native=False, quantization="")
    return None


def _describe(model: nn.Module, choice: PathChoice) -> Decoder | None:
    try:
        decoder = describe(model)
    except NotDescribed as error:
        _log.info("path.generic", reason=str(error))
        return None
    if decoder.embedding.device.type != "cpu":
        return None
    return decoder


def _prepare_fast(
    model: nn.Module, decoder: Decoder, choice: PathChoice, num_trial_layers: int, *, consume: bool
) -> Prepared:
    release = mapped.releasing(model, _release if consume else _keep)
    reason = "it is switched off" if not (choice.is_native and choice.is_packed) else None
    if reason is None and library.find() is None:
        reason = "there is no native library"
    reason = reason or unfit_reason(decoder)
    native: NativeDecoder | None = None
    if reason is None:
        native = NativeDecoder(decoder, _kind(choice, decoder.dtype), release)
        release(model.get_input_embeddings())  # type: ignore[operator]
    else:
        _log.info("path.torch", reason=reason)
        embedding = model.get_input_embeddings().weight  # type: ignore[operator]
        embedding.data = mapped.settled(embedding.data)  # here once, for the model and its description
        decoder = replace(decoder, embedding=embedding.detach())
    made = native or PlainDecoder(decoder, choice.linears, release)
    shapes = decoder.shapes

    def make(*arguments: Any, scratch_bytes: int = 0, **options: Any) -> Computes:
        return FastModel(made, shapes, *arguments, **options)

    def make_trial(*arguments: Any) -> Computes:
        return FastModel(made, shapes[:num_trial_layers], *arguments)

    return Prepared("fast native" if native else "fast torch", shapes, made.weights_bytes, make, make_trial)


def _prepare_generic(model: nn.Module, choice: PathChoice, shapes: list[LayerShape]) -> Prepared:
    num_bytes = operate(model, choice.linears, mapped.releasing(model, _keep)) if choice.is_packed else 0
    num_bytes += sum(tensor.nbytes for tensor in model.parameters())

    def make(
        dtype: torch.dtype, num_blocks: int, block_tokens: int, scratch_bytes: int = 64 << 20, **options: Any
    ) -> Computes:
        return PagedModel(model, dtype, num_blocks, block_tokens, scratch_bytes, is_native=choice.is_native, **options)

    return Prepared("generic", shapes, num_bytes, make)


def judge(
    prepared: Prepared,
    expected: list[Tensor],
    dtype: torch.dtype,
    quantization: str,
    architecture: str,
    *,
    block_tokens: int = self_test.TEST_BLOCK_TOKENS,
) -> None:
    """Try a path against what the model itself computed (`self_test.reference`). Raises WrongResult."""
    try:
        make = prepared.make_trial or prepared.make
        computes = make(dtype, self_test.TEST_BLOCKS, block_tokens)
        error = self_test.compare(computes, expected, dtype, quantization, block_tokens=block_tokens)
    except Exception as failure:
        raise WrongResult(architecture, prepared.path, f"{type(failure).__name__}: {failure}") from failure
    if not self_test.is_close(error, dtype, quantization):
        raise WrongResult(architecture, prepared.path, f"its logits are off by {error:.1%}")
    _log.info("path.tested", path=prepared.path, error=round(error, 6))


def _kind(choice: PathChoice, dtype: torch.dtype) -> Kind:
    match choice.quantization:
        case "int8":
            return "int8"
        case "int4":
            return "int4"
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def _release(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.new_empty(0)


def _keep(module: nn.Module) -> None:
    pass


def prepare_any(load: Callable[[], nn.Module], dtype: torch.dtype, choice: PathChoice) -> tuple[nn.Module, Prepared]:
    """Load and make ready by the best path that gives what the model itself gives; the model is used up.

    Raises:
        UnsupportedArchitecture: no path does.
    """
    attempt: PathChoice | None = choice
    last: WrongResult | None = None
    while attempt is not None:
        model = load()
        try:
            return model, prepare(model, dtype, attempt, verify=True, consume=True)
        except WrongResult as error:
            _log.warning("path.wrong", path=error.path, reason=error.reason)
            attempt, last = weaker(attempt), error
    assert last is not None
    raise UnsupportedArchitecture(
        last.architecture,
        f"through the paged cache {last.reason} from its own forward pass. It may keep state outside of attention, or "
        "use a mask or position bias that this engine does not know.",
    )
