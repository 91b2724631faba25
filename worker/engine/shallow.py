"""A decoder cut down to its first layers for a moment: enough of them to show every kind that it has.

What a trial of a whole model costs grows with its depth; what it tells does not, where all layers beyond the first few
have the same modules with the same settings as one of these.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

_LEAST = 2  # so that what one layer leaves in the residual stream meets another
_OWN = "layer_idx"  # the one setting that says where a layer is and not what it does


def num_telling(layers: Sequence[nn.Module]) -> int:
    """How many of the first layers show everything that any of the layers does."""
    known: set[object] = set()
    last = 0
    for number, layer in enumerate(layers):
        kind = _kind(layer)
        if kind not in known:
            known.add(kind)
            last = number + 1
    return min(len(layers), max(_LEAST, last))


@contextmanager
def first_layers(body: Any, count: int) -> Iterator[None]:
    """Within the block `body.layers` are the first so many."""
    layers = body.layers
    body.layers = nn.ModuleList(list(layers)[:count])
    try:
        yield
    finally:
        body.layers = layers


def _kind(layer: nn.Module) -> object:
    """Equal for layers that compute alike: modules, their plain settings, the shapes and types of their tensors."""
    return tuple((name, type(module), _settings(module), _tensors(module)) for name, module in layer.named_modules())


def _settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    plain = (bool, int, float, str, type(None))
    found = ((name, value) for name, value in vars(module).items() if name != _OWN and isinstance(value, plain))
    return tuple(sorted(found, key=lambda one: one[0]))


def _tensors(module: nn.Module) -> tuple[tuple[str, tuple[int, ...], object], ...]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in own)
