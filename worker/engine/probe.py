"""What a model's attention layers are like, found out by running it on two tokens.

The configuration classes of some hundred architectures name these things differently; the calls that the layers make
do not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.engine.attention import NAME, Call, answered_by
from worker.engine.errors import UnsupportedArchitecture
from worker.engine.vision.parts import let_alone


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One attention layer's part of the cache."""

    kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device
    window: int | None

    @property
    def values_per_token(self) -> int:
        """Numbers stored for each token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class Probe:
    """The attention layers by module, in the order of their calls, and the width of the logits."""

    layers: dict[nn.Module, LayerShape]
    vocab_size: int


class _Recorder:
    def __init__(self) -> None:
        self.layers: dict[nn.Module, LayerShape] = {}

    def attend(self, call: Call) -> Tensor:
        module = call.module
        assert isinstance(module, nn.Module), module
        if module in self.layers:
            raise ValueError("one attention module is called twice")
        _, kv_heads, _, key_dim = call.key.shape
        value_dim = call.value.shape[-1]
        self.layers[module] = LayerShape(kv_heads, key_dim, value_dim, call.key.device, call.window)
        _, heads, tokens, _ = call.query.shape
        return call.query.new_zeros(1, tokens, heads, value_dim)


@torch.inference_mode()
def probe(model: nn.Module) -> Probe:
    """Run the model on two tokens and note its attention layers.

    Raises:
        UnsupportedArchitecture: the model cannot be run that way, has no attention of the common form, or says of
            itself that it has layers of another kind.
    """
    architecture = type(model).__name__
    use_engine_attention(model)
    recorder = _Recorder()
    device = next(model.parameters()).device
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    try:
        with answered_by(recorder):
            output = model(input_ids=ids, position_ids=torch.arange(2, device=device)[None], use_cache=False)
        vocab_size = output.logits.shape[-1]
    except Exception as error:
        raise UnsupportedArchitecture(architecture, f"a trial run failed: {type(error).__name__}: {error}") from error
    if not recorder.layers:
        raise UnsupportedArchitecture(architecture, "its attention does not go through transformers' interface")
    _check_declared_layers(model, recorder.layers, architecture)
    return Probe(recorder.layers, vocab_size)


def use_engine_attention(model: nn.Module) -> None:
    """Let the model's layers call this engine's attention, but for those that read images."""
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    let_alone(model)


def _check_declared_layers(model: nn.Module, layers: dict[nn.Module, LayerShape], architecture: str) -> None:
    """Compare with what the configuration says: a short trial cannot tell a wide window from none."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    declared = getattr(config, "layer_types", None) or []
    strange = sorted(set(declared) - {"full_attention", "sliding_attention"})
    if strange:
        raise UnsupportedArchitecture(architecture, f"it has layers of kind {', '.join(map(str, strange))}")
    for module, shape in layers.items():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and index < len(declared):
            slides = declared[index] == "sliding_attention"
            if slides and shape.window is None:
                raise UnsupportedArchitecture(architecture, f"layer {index} slides and does not say how far")


def stable_context_tokens(model: nn.Module) -> int | None:
    """The longest context in which rotary frequencies do not depend on its length; None: they never do.

    Beyond it, `dynamic` and `longrope` scaling would turn the keys of a whole batch by its longest sequence.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = parameters.values() if "rope_type" not in parameters else [parameters]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if isinstance(kind, dict) and ("dynamic" in str(kind.get("rope_type")) or kind.get("rope_type") == "longrope")
    ]
    return min(limits, default=None)
