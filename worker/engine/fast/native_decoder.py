"""A decoder computed by the native library: its weights packed, and a step as one call."""

import ctypes
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from worker.engine.cache import LayerCache
from worker.engine.fast.description import Activation, Decoder, DecoderLayer, Stacked
from worker.engine.fast.packing import Packed, Places
from worker.engine.native import library
from worker.engine.native.matrix import Kind, PackedMatrix, can_pack
from worker.engine.native.paging import cache_struct, run_array, span_array

_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


def unfit_reason(decoder: Decoder) -> str | None:
    """Why the library cannot compute such a decoder; None: it can."""
    lanes = 2 * library.load().plexus_lanes()
    if decoder.dtype not in (torch.float32, torch.bfloat16) or decoder.embedding.device.type != "cpu":
        return f"it is in {decoder.dtype} on {decoder.embedding.device}"
    if decoder.head_dim % lanes or decoder.hidden % 2 or decoder.ffn % 2:
        return f"its heads of {decoder.head_dim} are no multiple of {lanes}"
    if decoder.has_experts:
        return "it has experts"
    if decoder.heads // decoder.kv_heads > 64:
        return f"{decoder.heads // decoder.kv_heads} heads share one key"
    if len({layer.window for layer in decoder.layers} - {None}) > 1:
        return "its windows differ"
    return None


class NativeDecoder:
    """The weights in the library's layout.

    Args:
        decoder: what to compute; nothing of its weights is referred to afterwards.
        kind: of the linear layers' weights; the head and the embedding of an int4 model are int8.
        release: called with each linear layer once its weight is packed.
    """

    def __init__(self, decoder: Decoder, kind: Kind, release: Callable[[nn.Module], None]) -> None:
        self._library = library.load()
        self._kept: list[PackedMatrix | Tensor] = []
        self._kind: Kind = kind
        self._plain: Kind = "bfloat16" if decoder.dtype == torch.bfloat16 else "float32"
        self.vocab_size = decoder.vocab_size
        self._is_window = [layer.window is not None for layer in decoder.layers]
        self._layers = (library.Layer * len(decoder.layers))()
        for struct, layer in zip(self._layers, decoder.layers, strict=True):
            self._fill(struct, layer, release)
        self._model = self._make_model(decoder)
        release(decoder.head)

    @property
    def weights_bytes(self) -> int:
        """Memory of everything that is packed."""
        return sum(held.num_bytes if isinstance(held, PackedMatrix) else held.nbytes for held in self._kept)

    def bind(self, caches: Sequence[LayerCache]) -> "BoundDecoder":
        """The decoder over these layers' caches; its first layers, if there are caches for no more."""
        return BoundDecoder(self, caches)

    def _make_model(self, decoder: Decoder) -> library.Model:
        kind: Kind = "int8" if self._kind in ("int8", "int4") else self._plain
        head = self._pack(decoder.head.weight, decoder.head.bias, kind)
        embedding = head
        if not decoder.has_shared_head:
            embedding = self._pack(decoder.embedding, None, self._plain)
        model = library.Model(
            layers=self._layers,
            num_layers=len(self._layers),
            embedding=embedding.struct,
            head=head.struct,
            final_norm=self._point(decoder.final_norm),
            hidden=decoder.hidden,
            heads=decoder.heads,
            head_dim=decoder.head_dim,
            ffn=decoder.ffn,
            rotary_dim=decoder.rotary_dim,
            epsilon=decoder.epsilon,
            scale=decoder.scale,
            softcap=decoder.softcap or 0.0,
            final_softcap=decoder.final_softcap or 0.0,
            embedding_scale=decoder.embedding_scale,
            activation=_ACTIVATIONS[decoder.activation],
        )
        for number, rope in enumerate(decoder.ropes):
            model.frequencies[number] = self._point(rope.frequencies)
            model.rope_scale[number] = rope.scale
        return model

    def _fill(self, struct: library.Layer, layer: DecoderLayer, release: Callable[[nn.Module], None]) -> None:
        for name in ("qkv", "output", "gate", "up", "down"):
            stacked: Stacked = getattr(layer, name)
            kind: Kind = self._kind if can_pack(self._kind, stacked.inputs) else "int8"
            setattr(struct, name, self._pack(stacked.weights(), stacked.bias(), kind).struct)
            if name != "gate":  # the up half may be of the same module
                for module in stacked.modules:
                    release(module)
        for module in layer.gate.modules:
            release(module)
        for name in ("input_norm", "query_norm", "key_norm", "after_attention", "mlp_norm", "after_mlp"):
            norm: Tensor | None = getattr(layer, name)
            setattr(struct, name, None if norm is None else self._point(norm))
        struct.window = layer.window or 0
        struct.rope = layer.rope
        struct.table = 1 if layer.window else 0

    def _pack(self, weight: Tensor | list[Tensor], bias: Tensor | None, kind: Kind) -> PackedMatrix:
        matrix = PackedMatrix(weight, bias, kind)
        self._kept.append(matrix)
        return matrix

    def _point(self, values: Tensor) -> int:
        values = values.float().contiguous()
        self._kept.append(values)
        return values.data_ptr()


class BoundDecoder:
    """A decoder over its caches. One call at a time."""

    def __init__(self, decoder: NativeDecoder, caches: Sequence[LayerCache]) -> None:
        self._decoder = decoder  # owns what the structures point to
        self._caches = list(caches)
        self._library = library.load()
        self._layers = type(decoder._layers).from_buffer_copy(decoder._layers)
        for struct, cache in zip(self._layers, self._caches, strict=False):
            struct.cache = cache_struct(cache)
        self._model = library.Model.from_buffer_copy(decoder._model)
        self._model.layers = self._layers
        self._model.num_layers = len(self._caches)
        self._space = self._library.plexus_workspace()
        weakref.finalize(self, self._library.plexus_free_workspace, self._space)

    def forward(self, packed: Packed) -> Tensor:
        """Logits of the kept tokens, [kept, vocabulary], float32."""
        flat = torch.tensor(packed.ids + packed.positions, dtype=torch.int64)
        kept = torch.tensor(packed.kept, dtype=torch.int64)
        logits = torch.empty(len(packed.kept), self._decoder.vocab_size)
        rows = len(packed.ids)
        step = library.Step(
            rows=rows,
            num_spans=len(packed.full.spans),
            num_kept=len(packed.kept),
            ids=flat.data_ptr(),
            positions=flat.data_ptr() + 8 * rows,
            kept=kept.data_ptr(),
            logits=logits.data_ptr(),
        )
        alive = [self._fill(step.tables[0], packed.full)]
        if packed.window is packed.full:
            step.tables[1] = step.tables[0]
        else:
            alive.append(self._fill(step.tables[1], packed.window))
        self._library.plexus_forward(
            ctypes.byref(self._model), ctypes.byref(step), self._space, torch.get_num_threads()
        )
        return logits

    @staticmethod
    def _fill(tables: library.Tables, places: Places) -> tuple[Tensor, ...]:
        """Point the structure at the places; what is returned must outlive the call."""
        slots = torch.tensor(places.slots, dtype=torch.int64)
        spans, runs = span_array(places.spans), run_array(places.spans)
        tables.slots, tables.spans, tables.runs = slots.data_ptr(), spans.data_ptr(), runs.data_ptr()
        return slots, spans, runs
