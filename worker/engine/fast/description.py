"""What a decoder of the Llama kind is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worker.engine.probe import LayerShape

Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True, slots=True)
class Stacked:
    """The weight of some linear layers on top of each other, or a part of it. They are read when asked for."""

    modules: tuple[nn.Linear, ...]
    start: int = 0
    stop: int | None = None

    def weight(self) -> Tensor:
        """[outputs, inputs]"""
        weights = self.weights()
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def weights(self) -> list[Tensor]:
        """The parts that `weight` puts on top of each other, where they lie."""
        found: list[Tensor] = []
        first = 0
        for module in self.modules:
            whole = module.weight.detach()
            stop = len(whole) if self.stop is None else self.stop - first
            part = whole[max(0, self.start - first) : max(0, stop)]
            first += len(whole)
            if len(part):
                found.append(part)
        return found

    def bias(self) -> Tensor | None:
        """[outputs], or None if none of them has one."""
        if all(module.bias is None for module in self.modules):
            return None
        biases = [
            module.weight.new_zeros(module.out_features) if module.bias is None else module.bias.detach()
            for module in self.modules
        ]
        return torch.cat(biases)[self.start : self.stop]

    @property
    def inputs(self) -> int:
        """How many."""
        return self.modules[0].in_features


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """Rotary positions: frequencies [rotary_dim / 2], and a factor of cosine and sine."""

    frequencies: Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """A mixture of experts in place of one multi-layer perceptron: each token goes through a few of many.

    Weights are read when asked for, like those of `Stacked`.
    """

    gate: nn.Module  # has `weight`
    module: nn.Module  # has `gate_up_proj` and `down_proj`
    num_chosen: int  # for each token
    is_normed: bool  # the shares of those chosen sum to one

    def router(self) -> Tensor:
        """[experts, hidden]"""
        return self.gate.weight.detach()  # type: ignore[operator]

    def gate_up(self) -> Tensor:
        """[experts, 2 x ffn, hidden], the gate first"""
        return self.module.gate_up_proj.detach()  # type: ignore[operator]

    def down(self) -> Tensor:
        """[experts, hidden, ffn]"""
        return self.module.down_proj.detach()  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer. Norms are float32 weights to multiply with; None: there is no such norm.

    Where there are `experts`, `gate`, `up` and `down` are of no modules.
    """

    qkv: Stacked
    output: Stacked
    gate: Stacked
    up: Stacked
    down: Stacked
    input_norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None  # per head
    key_norm: Tensor | None
    after_attention: Tensor | None  # of what attention adds
    after_mlp: Tensor | None
    window: int | None  # each token sees so many, itself included
    rope: int  # which of the decoder's
    experts: Experts | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """A whole decoder."""

    layers: Sequence[DecoderLayer]
    embedding: Tensor  # [vocabulary, hidden]
    head: nn.Linear  # its weight may be the embedding
    final_norm: Tensor
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    ropes: tuple[Rope, ...]  # one or two
    epsilon: float
    scale: float  # of attention scores
    softcap: float | None
    final_softcap: float | None
    embedding_scale: float
    activation: Activation
    dtype: torch.dtype

    @property
    def shapes(self) -> list[LayerShape]:
        """What each layer keeps in the cache."""
        device = self.embedding.device
        return [LayerShape(self.kv_heads, self.head_dim, self.head_dim, device, layer.window) for layer in self.layers]

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of them."""
        return any(layer.experts for layer in self.layers)

    @property
    def rotary_dim(self) -> int:
        """How much of a head turns with the position."""
        return 2 * len(self.ropes[0].frequencies)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.head.out_features

    @property
    def has_shared_head(self) -> bool:
        """Whether the head's weight is the embedding."""
        return self.head.weight.data_ptr() == self.embedding.data_ptr()
