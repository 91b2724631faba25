"""A described decoder on a device: fused products, few and fused operations between them, nothing that waits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.engine.cuda.attention import ChosenAttention, Rule
from worker.engine.cuda.linears import make_linear
from worker.engine.cuda.operations import HeadSizes, Operations
from worker.engine.cuda.page_cache import PageCache
from worker.engine.cuda.step import StepInputs
from worker.engine.fast.description import Decoder, DecoderLayer
from worker.engine.fast.sharing import Sharing, reduced
from worker.engine.linears import Linear


@dataclass(frozen=True, slots=True)
class _Layer:
    of: DecoderLayer
    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear


class DeviceDecoder:
    """The weights of a decoder and its forward pass.

    Args:
        decoder: what to compute.
        operations, attention: how.
        quantization: of the layers' weights; the head and the embedding stay as they are.
        release: called with each linear layer once its weight is not needed any more.
        sharing: joins it with the other ranks' shares of the model; None: it is the whole model.
    """

    def __init__(
        self,
        decoder: Decoder,
        operations: Operations,
        attention: ChosenAttention,
        quantization: str,
        release: Callable[[nn.Module], None],
        *,
        use_triton: bool = True,
        sharing: Sharing | None = None,
    ) -> None:
        self.vocab_size = decoder.vocab_size
        self._sharing = sharing
        self._of = decoder
        self._operations = operations
        self._attention = attention
        self._sizes = HeadSizes(decoder.heads, decoder.kv_heads, decoder.head_dim)
        self._layers = []
        for layer in decoder.layers:
            self._layers.append(_make_layer(layer, quantization, use_triton, sharing))
            for stacked in (layer.qkv, layer.output, layer.gate, layer.up, layer.down):
                for module in stacked.modules:
                    release(module)
        self._head = make_linear(decoder.head.weight.detach(), decoder.head.bias, "")

    @property
    def weights_bytes(self) -> int:
        """Memory of everything that is kept."""
        linears = [linear for layer in self._layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        shared = 0 if self._of.has_shared_head else self._of.embedding.nbytes
        return shared + self._head.num_bytes + sum(linear.num_bytes for linear in linears)

    def compute(self, inputs: StepInputs, caches: Sequence[PageCache]) -> Tensor:
        """Logits of the kept tokens, [kept, vocabulary]."""
        of, operations = self._of, self._operations
        sharing = self._sharing
        residual = of.embedding[inputs.ids] if sharing is None else sharing.embed(of.embedding, inputs.ids)
        if of.embedding_scale != 1.0:
            residual = residual * of.embedding_scale
        angles = [self._angles(number, inputs.positions) for number in range(len(of.ropes))]
        x = operations.norm(residual, self._layers[0].of.input_norm, of.epsilon)
        for number, layer in enumerate(self._layers):
            x = self._attend(layer, layer.qkv(x), angles[layer.of.rope], caches[number], inputs)
            is_last = number + 1 == len(self._layers)
            if is_last and inputs.kept is not None and sharing is None:
                if not len(inputs.kept):
                    return x.new_empty(0, of.vocab_size)
                kept = inputs.kept.long()  # the others are in the cache, and nobody asks what becomes of them
                x, residual = x[kept], residual[kept]
            x = self._after(layer.output(x), layer.of.after_attention)
            x = operations.add_norm(x, residual, layer.of.mlp_norm, of.epsilon)
            x = layer.down(operations.gate(layer.gate_up(x), of.activation))
            x = self._after(x, layer.of.after_mlp)
            if is_last and inputs.kept is not None and sharing is not None:
                kept = inputs.kept.long()  # only here: a rank that fails goes through the sums of a step in one shape
                x, residual = x[kept], residual[kept]
            norm = of.final_norm if is_last else self._layers[number + 1].of.input_norm
            x = operations.add_norm(x, residual, norm, of.epsilon)
        logits = self._head(x)
        if sharing is not None:
            logits = sharing.gather(logits)
        if of.final_softcap:
            logits = torch.tanh(logits.float() / of.final_softcap) * of.final_softcap
        return logits

    def _attend(
        self, layer: _Layer, qkv: Tensor, angles: tuple[Tensor, Tensor], cache: PageCache, inputs: StepInputs
    ) -> Tensor:
        of = self._of
        slots = inputs.paging(cache.is_window).slots
        norms = layer.of.query_norm, layer.of.key_norm
        query = self._operations.turn_and_store(qkv, self._sizes, norms, of.epsilon, angles, cache, slots)
        rule = Rule(of.scale, layer.of.window, of.softcap)
        return self._attention.attend(query, cache, inputs, rule).flatten(1)

    def _after(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._operations.norm(x, weight, self._of.epsilon)

    def _angles(self, number: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [tokens, rotary_dim / 2]."""
        rope = self._of.ropes[number]
        angles = positions[:, None].float() * rope.frequencies
        return angles.cos() * rope.scale, angles.sin() * rope.scale


def _make_layer(layer: DecoderLayer, quantization: str, use_triton: bool, sharing: Sharing | None) -> _Layer:
    gate, up = layer.gate, layer.up
    biases = gate.bias(), up.bias()
    bias = None if biases[0] is None or biases[1] is None else torch.cat([biases[0], biases[1]])

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        return make_linear(weight, bias, quantization, use_triton=use_triton)

    return _Layer(
        layer,
        make(layer.qkv.weight(), layer.qkv.bias()),
        reduced(make(layer.output.weight(), layer.output.bias()), sharing),
        make(torch.cat([gate.weight(), up.weight()]), bias),
        reduced(make(layer.down.weight(), layer.down.bias()), sharing),
    )
