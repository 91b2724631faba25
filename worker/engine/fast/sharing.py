"""What joins a decoder that has a share of a model with those that have the other shares.

Every rank computes the same tokens with its own heads and its own part of each layer's width; what it adds to a layer
is a part of the sum. A decoder that is the whole model has none of this in its way.
"""

from typing import Protocol

from torch import Tensor

from worker.engine.linears import Linear


class Sharing(Protocol):
    """The other ranks. Every rank makes the same calls in the same order."""

    def embed(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows [tokens, hidden] of an embedding of which `table` is this rank's part; `ids` are of the whole."""
        ...

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks; may be made in place."""
        ...

    def gather(self, logits: Tensor) -> Tensor:
        """Logits [kept, part] to those of all ranks, [kept, vocabulary], on the first rank; on others anything."""
        ...


class _Reduced:
    """A layer whose outputs are parts of a sum."""

    def __init__(self, layer: Linear, sharing: Sharing) -> None:
        self._layer, self._sharing = layer, sharing
        self.num_bytes = layer.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self._sharing.reduce(self._layer(x))


def reduced(layer: Linear, sharing: Sharing | None) -> Linear:
    """The layer, summed over all ranks where there are others."""
    return layer if sharing is None else _Reduced(layer, sharing)
