"""The attention function that transformers' modules call, and to whom it passes the call on.

transformers looks the function up by name for every layer. Who answers is a module-level variable and not an argument
of the model, because several architectures do not hand unknown arguments down to their attention. No mask function is
registered under the name, so transformers builds no mask.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "plexus"


@dataclass(frozen=True, slots=True)
class Call:
    """What one attention layer asks: query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim]."""

    module: Hashable  # who asks: the key of its cache
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None  # each token sees so many, itself included
    softcap: float | None
    sinks: Tensor | None  # [heads]: a score per head that takes part in the softmax and has no value


class Responder(Protocol):
    """Answers the attention calls of a forward pass."""

    def attend(self, call: Call) -> Tensor:
        """The output, [1, tokens, heads, value_dim]."""
        ...


_responder: Responder | None = None


@contextmanager
def answered_by(responder: Responder) -> Iterator[None]:
    """Within this context, `responder` answers the attention calls."""
    global _responder
    previous, _responder = _responder, responder
    try:
        yield
    finally:
        _responder = previous


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if _responder is None:
        raise RuntimeError("the model was called outside of the engine while its attention is set to the engine's")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(module, query, key, value, float(scale), sliding_window, softcap, s_aux)
    return _responder.attend(call), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
