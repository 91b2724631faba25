"""A rank's share of a model: loaded, tried, packed, given a cache. The same in every rank of a group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine import attention, self_test
from worker.engine.cache import block_bytes
from worker.engine.cache_space import WindowCap
from worker.engine.cuda.attention import ChosenAttention
from worker.engine.cuda.decoder import DeviceDecoder
from worker.engine.cuda.models import DeviceModel
from worker.engine.cuda.operations import choose_operations
from worker.engine.cuda.options import CudaChoice
from worker.engine.errors import UnsupportedArchitecture
from worker.engine.fast.families import NotDescribed, describe
from worker.engine.fast.fast_model import FastModel
from worker.engine.fast.plain_decoder import PlainDecoder
from worker.engine.linears import LinearChoice
from worker.engine.parallel.collectives import Collectives, sum_once
from worker.engine.parallel.messages import Load, Make
from worker.engine.prepared import Computes
from worker.engine.probe import probe
from worker.models import mapped
from worker.models.division import Division
from worker.models.load import load


class Share:
    """Loads the share, without a word to the other ranks.

    Raises:
        ModelError: directory or weights are not good enough.
        UnsupportedArchitecture: such a model cannot be divided.
    """

    def __init__(
        self,
        wanted: Load,
        division: Division,
        device: torch.device,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.model: nn.Module = load(
            Path(wanted.path),
            device=str(device),
            dtype=wanted.dtype,
            attention=attention.NAME,
            progress=progress,
            leave=bool(wanted.quantization) and not wanted.is_device,
            division=division,
        )
        self.shapes = list(probe(self.model).layers.values())
        self._wanted = wanted
        self._division = division
        self._dtype = getattr(torch, wanted.dtype)
        try:
            self._described = describe(self.model)
        except NotDescribed as error:
            raise UnsupportedArchitecture(type(self.model).__name__, f"it is not divided: {error}") from error
        self.is_device = wanted.is_device and not self._described.has_experts
        self.collectives = Collectives(
            division,
            num_layers=len(self._described.layers),
            hidden=self._described.hidden,
            device=device,
            dtype=self._described.dtype,
            logits_dtype=self._described.dtype if self.is_device else torch.float32,
        )
        self._decoder: PlainDecoder | DeviceDecoder | None = None

    def reference(self) -> list[Tensor]:
        """The logits of the trial prompts by the model's own modules; every rank computes them at the same time."""
        hooks = self._join_modules()
        try:
            return self_test.reference(self.model, self._division.vocab)
        finally:
            for hook in hooks:
                hook.remove()

    def pack(self) -> int:
        """Make it ready; the modules are used up. Returns what the weights take, in bytes."""
        release = mapped.releasing(self.model, _release)
        wanted = self._wanted
        if self.is_device:
            choice = CudaChoice.from_options(wanted.options, wanted.quantization)
            device = self._described.embedding.device
            self._decoder = DeviceDecoder(
                self._described,
                choose_operations(self._described.dtype, device, use_triton=choice.has_triton),
                ChosenAttention(choice.attention),
                choice.quantization,
                release,
                use_triton=choice.has_triton,
                sharing=self.collectives,
            )
        else:
            linears = LinearChoice(wanted.quantization, is_packed=wanted.is_packed, is_native=wanted.is_native)
            self._decoder = PlainDecoder(self._described, linears, release, self.collectives)
        if held := mapped.of(self.model):
            held.end(self.model)
        return self._decoder.weights_bytes

    def make(self, wanted: Make) -> Computes:
        """The share with a cache."""
        decoder = self._decoder
        assert decoder is not None, "packed first"
        options: dict[str, Any] = {
            "cap": WindowCap(wanted.window, wanted.num_window_blocks) if wanted.num_window_blocks else None,
            "num_host_blocks": wanted.num_host_blocks,
        }
        size = (self._dtype, wanted.num_blocks, wanted.block_tokens)
        if isinstance(decoder, DeviceDecoder):
            return DeviceModel(decoder, self.shapes, *size, **options)
        return FastModel(decoder, self.shapes, *size, **options)

    def cache_bytes(self, wanted: Make) -> int:
        """What such a cache takes on the device."""
        return sum(
            (wanted.num_window_blocks if shape.window and wanted.num_window_blocks else wanted.num_blocks)
            * block_bytes([shape], wanted.block_tokens, self._dtype)
            for shape in self.shapes
        )

    def _join_modules(self) -> list[Any]:
        """Have the model's own modules compute with the other ranks'."""
        body: Any = self.model.model
        collectives, first = self.collectives, self._division.vocab_span[0]

        sought: list[Tensor] = []

        def localise(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            sought[:] = [args[0] - first]
            return (sought[0].clamp(0, module.num_embeddings - 1),)

        def join(module: Any, args: Any, out: Tensor) -> Tensor:
            is_elsewhere = (sought[0] < 0) | (sought[0] >= module.num_embeddings)
            return sum_once(out.masked_fill(is_elsewhere.unsqueeze(-1), 0))

        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return sum_once(out.contiguous())

        hooks = [
            body.embed_tokens.register_forward_pre_hook(localise),
            body.embed_tokens.register_forward_hook(join),
            self.model.lm_head.register_forward_hook(  # type: ignore[union-attr]
                lambda module, args, out: collectives.gather_once(out)
            ),
        ]
        for layer in body.layers:
            added = getattr(layer.mlp, "experts", None) or layer.mlp.down_proj
            hooks += [layer.self_attn.o_proj.register_forward_hook(add), added.register_forward_hook(add)]
        return hooks


def _release(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.new_empty(0)
