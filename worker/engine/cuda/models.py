"""A model with its paged cache on a device."""

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from worker.engine.attention import Call, answered_by
from worker.engine.cache_space import WindowCap
from worker.engine.cuda.attention import ChosenAttention, Rule
from worker.engine.cuda.page_cache import PageCache
from worker.engine.cuda.step import StepInputs, pack_step
from worker.engine.plan import Row, Transfer
from worker.engine.probe import LayerShape


class Body(Protocol):
    """A model without its cache."""

    vocab_size: int

    def compute(self, inputs: StepInputs, caches: Sequence[PageCache], /) -> Tensor:
        """Compute tokens, storing keys and values; logits of the kept ones, [kept, vocabulary]."""
        ...


class Modules:
    """transformers' modules, with attention of ours.

    Args:
        model: a causal language model, its attention set to the engine's.
        layers: its attention modules, in the order of the caches.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], vocab_size: int, attention: ChosenAttention):
        self.vocab_size = vocab_size
        self._model = model
        self._numbers = {module: number for number, module in enumerate(layers)}
        self._attention = attention
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    def compute(self, inputs: StepInputs, caches: Sequence[PageCache]) -> Tensor:
        """See Body."""
        kept = None if inputs.kept is None else inputs.kept.long()
        options = {} if kept is None or not self._can_keep else {"logits_to_keep": kept}
        with answered_by(_Responder(self._numbers, caches, inputs, self._attention)):
            output = self._model(
                input_ids=inputs.ids.long()[None],
                position_ids=inputs.positions.long()[None],
                use_cache=False,
                **options,
            )
        logits: Tensor = output.logits[0]
        return logits if kept is None or self._can_keep else logits[kept]


class _Responder:
    def __init__(
        self,
        numbers: dict[nn.Module, int],
        caches: Sequence[PageCache],
        inputs: StepInputs,
        attention: ChosenAttention,
    ) -> None:
        self._numbers, self._caches, self._inputs, self._attention = numbers, caches, inputs, attention

    def attend(self, call: Call) -> Tensor:
        """See `worker.engine.attention.Responder`."""
        assert isinstance(call.module, nn.Module), call.module
        cache = self._caches[self._numbers[call.module]]
        query, key, value = (part[0].transpose(0, 1) for part in (call.query, call.key, call.value))
        self._attention.store(cache, self._inputs, key, value)
        rule = Rule(call.scale, call.window, call.softcap, call.sinks)
        return self._attention.attend(query, cache, self._inputs, rule)[None]


class DeviceModel:
    """A body, its paged cache, and the forward pass that joins them.

    Args:
        body: with its weights.
        shapes: of its layers' caches, in their order.
        dtype: of the cache.
        num_blocks, block_tokens: size of the cache.
        cap: layers with a sliding window have so many blocks instead, and tables of their own.
        num_host_blocks: of a second tier in host memory.
    """

    def __init__(
        self,
        body: Body,
        shapes: Sequence[LayerShape],
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        *,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
    ) -> None:
        self.vocab_size = body.vocab_size
        self.block_tokens = block_tokens
        self.is_capped = cap is not None
        self.device = shapes[0].device
        self.num_blocks = num_blocks
        self.num_window_blocks = cap.num_blocks if cap else num_blocks
        self._body = body
        self._caches = []
        for shape in shapes:
            is_window = cap is not None and shape.window is not None
            blocks = cap.num_blocks if cap is not None and is_window else num_blocks
            self._caches.append(
                PageCache(shape, blocks, block_tokens, dtype, is_window=is_window, num_host_blocks=num_host_blocks)
            )

    @torch.inference_mode()
    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks of the cache."""
        for cache in self._caches:
            for transfer in transfers:
                if transfer.is_window == cache.is_window:
                    cache.move(transfer)

    def compute(self, inputs: StepInputs) -> Tensor:
        """Logits of the kept tokens."""
        return self._body.compute(inputs, self._caches)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], keep: Callable[[Row], range]) -> Tensor:
        """Compute the rows' tokens, and store their keys and values.

        Returns:
            The logits of the positions that `keep` names for each row, [positions, vocabulary].
        """
        inputs = pack_step(rows, keep, is_capped=self.is_capped, page_tokens=self.block_tokens, device=self.device)
        return self.compute(inputs)
