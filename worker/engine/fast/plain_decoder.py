"""A decoder computed in torch operations: what the native library does, where there is none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.attention import Call
from worker.engine.cache import LayerCache
from worker.engine.fast.description import Activation, Decoder, DecoderLayer
from worker.engine.fast.experts import Activate, RoutedExperts
from worker.engine.fast.packing import Packed
from worker.engine.fast.sharing import Sharing, reduced
from worker.engine.linears import Linear, LinearChoice, make_linear
from worker.engine.paged import PagedAttention
from worker.models.mapped import settled

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
}


@dataclass(frozen=True, slots=True)
class _Layer:
    of: DecoderLayer
    qkv: Linear
    output: Linear
    mlp: Linear


class PlainDecoder:
    """The weights, each linear layer of the kind chosen.

    Args:
        decoder: what to compute.
        choice: which kinds of linear layers may be used.
        release: called with each linear layer once its weight is not needed any more.
        sharing: joins it with the other ranks' shares of the model; None: it is the whole model.
    """

    def __init__(
        self,
        decoder: Decoder,
        choice: LinearChoice,
        release: Callable[[nn.Module], None],
        sharing: Sharing | None = None,
    ) -> None:
        self._of = decoder
        self._embedding = settled(decoder.embedding)
        self._sharing = sharing
        self.vocab_size = decoder.vocab_size
        activate = _ACTIVATIONS[decoder.activation]
        self._layers = [self._make_layer(layer, activate, choice, release) for layer in decoder.layers]
        self._head = make_linear(decoder.head.weight.detach(), decoder.head.bias, choice)
        if not decoder.has_shared_head:
            release(decoder.head)

    @property
    def weights_bytes(self) -> int:
        """Memory of everything that is kept."""
        linears: list[Linear] = [self._head]
        for layer in self._layers:
            linears += [layer.qkv, layer.output, layer.mlp]
        return self._embedding.nbytes + sum(linear.num_bytes for linear in linears)

    def bind(self, caches: Sequence[LayerCache]) -> "BoundPlainDecoder":
        """The decoder over these layers' caches; its first layers, if there are caches for no more."""
        return BoundPlainDecoder(self, caches)

    def _make_layer(
        self,
        layer: DecoderLayer,
        activate: Activate,
        choice: LinearChoice,
        release: Callable[[nn.Module], None],
    ) -> _Layer:
        made = _Layer(
            layer,
            make_linear(layer.qkv.weight(), layer.qkv.bias(), choice),
            reduced(make_linear(layer.output.weight(), layer.output.bias(), choice), self._sharing),
            reduced(
                RoutedExperts(layer.experts, activate, choice, release)
                if layer.experts
                else _Perceptron(layer, activate, choice),
                self._sharing,
            ),
        )
        for stacked in (layer.qkv, layer.output, layer.gate, layer.up, layer.down):
            for module in stacked.modules:
                release(module)
        return made


class _Perceptron:
    """The multi-layer perceptron of one layer."""

    def __init__(self, layer: DecoderLayer, activate: Activate, choice: LinearChoice) -> None:
        gate, up = layer.gate, layer.up
        biases = gate.bias(), up.bias()
        bias = None if biases[0] is None or biases[1] is None else torch.cat([biases[0], biases[1]])
        self._activate = activate
        self._gate_up = make_linear(torch.cat([gate.weight(), up.weight()]), bias, choice)
        self._down = make_linear(layer.down.weight(), layer.down.bias(), choice)
        self.num_bytes = self._gate_up.num_bytes + self._down.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return self._down(self._activate(gate) * up)


class BoundPlainDecoder:
    """A decoder over its caches."""

    def __init__(self, decoder: PlainDecoder, caches: Sequence[LayerCache]) -> None:
        self._decoder = decoder
        self._of = decoder._of
        self._caches = dict(enumerate(caches))
        self._device = decoder._embedding.device

    def forward(self, packed: Packed) -> Tensor:
        """Logits of the kept tokens, [kept, vocabulary]."""
        of = self._of
        flat = torch.tensor([packed.ids, packed.positions, packed.full.slots, packed.window.slots], device=self._device)
        attention = PagedAttention(
            self._caches,
            packed.full.spans,
            flat[2],
            scratch_bytes=64 << 20,
            window_spans=packed.window.spans,
            window_slots=flat[3],
        )
        table, sharing = self._decoder._embedding, self._decoder._sharing
        hidden = (table[flat[0]] if sharing is None else sharing.embed(table, flat[0])) * of.embedding_scale
        turns = [self._angles(number, flat[1]) for number in range(len(of.ropes))]
        kept = torch.tensor(packed.kept, dtype=torch.long, device=self._device)
        for number, layer in enumerate(self._decoder._layers[: len(self._caches)]):
            x = self._norm(hidden, layer.of.input_norm)
            x = self._attend(number, layer, layer.qkv(x), turns[layer.of.rope], attention)
            if number == len(self._caches) - 1 and sharing is None:  # nobody asks what becomes of the others
                hidden, x = hidden[kept], x[kept]
            hidden = hidden + self._norm(layer.output(x), layer.of.after_attention)
            x = layer.mlp(self._norm(hidden, layer.of.mlp_norm))
            hidden = hidden + self._norm(x, layer.of.after_mlp)
        if sharing is not None:  # a rank that fails goes through the sums of a step in one shape
            hidden = hidden[kept]
        logits = self._decoder._head(self._norm(hidden, of.final_norm)).float()
        if sharing is not None:
            logits = sharing.gather(logits)
        if of.final_softcap:
            logits = torch.tanh(logits / of.final_softcap) * of.final_softcap
        return logits

    def _attend(
        self, number: int, layer: _Layer, qkv: Tensor, turn: tuple[Tensor, Tensor], attention: PagedAttention
    ) -> Tensor:
        of = self._of
        heads = qkv.view(len(qkv), -1, of.head_dim)
        query, key, value = torch.split(heads, [of.heads, of.kv_heads, of.kv_heads], dim=1)
        query = _turn(self._norm(query, layer.of.query_norm), turn)
        key = _turn(self._norm(key, layer.of.key_norm), turn)
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        call = Call(number, query, key, value, of.scale, layer.of.window, of.softcap, None)
        return attention.attend(call).reshape(len(qkv), -1)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._of.epsilon)
        return (wide * weight).to(x.dtype)

    def _angles(self, number: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [tokens, 1, rotary_dim / 2]."""
        rope = self._of.ropes[number]
        angles = (positions[:, None].float() * rope.frequencies)[:, None]
        return angles.cos() * rope.scale, angles.sin() * rope.scale


def _turn(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [tokens, heads, dim], its first part turned by the angles."""
    cosine, sine = turn
    half = cosine.shape[-1]
    first, second, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)
    return turned.to(x.dtype)
