"""How a model's matrices are divided between the ranks of a replica: what each of them reads, and how small it is then.

| matrices | each rank has |
|---|---|
| query, gate, up | its heads, its part of the width |
| key, value | its heads; where there are fewer of them than ranks, several ranks have the same |
| output, down | the columns that belong to these; their products are summed over the ranks |
| embedding, head | its part of the vocabulary |
| norms, routers | all of it |

A rank's share is a model of the same family with smaller measures. No torch here: agents plan with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from worker.models.errors import CannotDivide
from worker.models.files import CONFIG, read_json
from worker.models.shape import Shape, read_shape
from worker.models.weights import TensorHeader

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "phi3", "gemma2", "gemma3_text")
_WIDTHS = ("intermediate_size", "moe_intermediate_size")  # of layers, and of their experts
_OUTPUTS = {"q_proj", "gate_proj", "up_proj", "w1", "w3"}
_KEYS = {"k_proj", "v_proj"}
_INPUTS = {"o_proj", "down_proj", "w2"}
_WORDS = {"embed_tokens", "lm_head"}


class Part(NamedTuple):
    """What a rank has of a tensor: of this dimension, these pieces. None at all: zeros, another rank has it."""

    dim: int
    pieces: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Of the dimension."""
        return sum(stop - start for start, stop in self.pieces)

    @property
    def is_run(self) -> bool:
        """Whether it is one run of bytes in the file."""
        return self.dim == 0 and len(self.pieces) == 1


@dataclass(frozen=True, slots=True)
class Division:
    """One rank's part. `of` makes one, or says why the model cannot be divided so."""

    rank: int
    size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    widths: tuple[tuple[str, int], ...]  # by their names in the configuration

    @staticmethod
    def of(path: Path, size: int, rank: int = 0, config: Mapping[str, Any] | None = None) -> "Division":
        """Of the model in `path` between `size` ranks; `config` completes config.json. Raises CannotDivide."""
        found = dict(config) if config is not None else read_json(path / CONFIG)
        shape = read_shape(path, config)
        if shape.model_type not in FAMILIES:
            kind = shape.model_type or "unknown"
            raise CannotDivide(path, size, f"models of type {kind} are not divided, only {', '.join(FAMILIES)}")
        widths = tuple((name, found[name]) for name in _WIDTHS if isinstance(found.get(name), int))
        odd = {"num_attention_heads": shape.heads, **dict(widths)}
        if shape.kv_heads >= size:
            odd["num_key_value_heads"] = shape.kv_heads
        odd = {name: number for name, number in odd.items() if number % size}
        if shape.kv_heads < size and size % shape.kv_heads:
            odd["num_key_value_heads"] = shape.kv_heads
        if odd:
            listed = ", ".join(f"{name} {number}" for name, number in odd.items())
            raise CannotDivide(path, size, f"{listed} cannot be shared out evenly between {size}")
        return Division(rank, size, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab, widths)

    @property
    def vocab_part(self) -> int:
        """Words of each rank; the last may have fewer."""
        return -(-self.vocab // self.size)

    @property
    def vocab_span(self) -> tuple[int, int]:
        """Of this rank."""
        return self.rank * self.vocab_part, min(self.vocab, (self.rank + 1) * self.vocab_part)

    @property
    def measures(self) -> dict[str, int]:
        """What the configuration of a rank's share says instead."""
        first, last = self.vocab_span
        return {
            "num_attention_heads": self.heads // self.size,
            "num_key_value_heads": max(1, self.kv_heads // self.size),
            "head_dim": self.head_dim,
            "vocab_size": last - first,
            **{name: width // self.size for name, width in self.widths},
        }

    def shrink(self, shape: Shape) -> Shape:
        """The measures that a share's memory depends on. The first rank has the logits of the whole vocabulary."""
        kv_heads = self.measures["num_key_value_heads"]
        return replace(
            shape,
            heads=self.heads // self.size,
            kv_heads=kv_heads,
            kv_items=2 * kv_heads * self.head_dim,
            ffn=shape.ffn // self.size,
        )

    def part(self, tensor: TensorHeader) -> Part | None:
        """What this rank has of a tensor. None: all of it."""
        module, kind = ("", *tensor.name.split("."))[-2:]
        length = tensor.shape[0] if tensor.shape else 0
        if module == "experts":  # all of them in one tensor: [experts, outputs, inputs]
            if kind == "gate_up_proj":
                return self._halves(1, tensor.shape[1])
            return self._even(2, tensor.shape[2]) if kind == "down_proj" else None
        if module in _OUTPUTS:
            return self._even(0, length)
        if module in _KEYS:
            return Part(0, (self._key_rows(0, length),))
        if module in _WORDS:
            return Part(0, (self.vocab_span,))
        if module == "gate_up_proj":
            return self._halves(0, length)
        if module == "qkv_proj":
            queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
            rows = self._even(0, queries).pieces
            return Part(0, (*rows, self._key_rows(queries, keys), self._key_rows(queries + keys, keys)))
        if module in _INPUTS:
            if kind == "bias":  # added once
                return None if self.rank == 0 else Part(0, ())
            return self._even(1, tensor.shape[1])
        return None

    def share(self, tensor: TensorHeader) -> TensorHeader:
        """The tensor as small as this rank has it; where that is one run of bytes in the file, it may be read so."""
        part = self.part(tensor)
        if part is None or not part.pieces:
            return tensor
        whole = tensor.shape[part.dim]
        row_bytes = tensor.stored_bytes // max(1, whole)
        shape = (*tensor.shape[: part.dim], part.length, *tensor.shape[part.dim + 1 :])
        offset = tensor.offset + (part.pieces[0][0] * row_bytes if part.is_run else 0)
        return tensor._replace(shape=shape, stored_bytes=part.length * row_bytes, offset=offset)

    def openable(self, tensor: TensorHeader) -> TensorHeader:
        """The tensor as it is to be opened: the run of bytes that this rank has of it, or the whole."""
        part = self.part(tensor)
        return self.share(tensor) if part is not None and part.is_run else tensor

    def _even(self, dim: int, length: int) -> Part:
        width = length // self.size
        return Part(dim, ((self.rank * width, (self.rank + 1) * width),))

    def _halves(self, dim: int, length: int) -> Part:
        ((start, stop),) = self._even(dim, length // 2).pieces
        return Part(dim, ((start, stop), (length // 2 + start, length // 2 + stop)))

    def _key_rows(self, first: int, length: int) -> tuple[int, int]:
        """Of the `length` rows from `first` on that are keys or values."""
        head = length // self.kv_heads
        start = first + self.rank * self.kv_heads // self.size * head
        return start, start + max(1, self.kv_heads // self.size) * head
