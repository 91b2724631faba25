"""Reads a decoder's description off a loaded transformers model.

Only families whose computation is known to the letter are described, and of these only what was tried: anything else is
left to the general path, with the reason. The self-test compares the result with the model itself in any case.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from worker.engine.fast.description import Activation, Decoder, DecoderLayer, Experts, Rope, Stacked

_ROPE_TYPES = {"default", "linear", "llama3", "yarn", "dynamic", "longrope"}  # up to the stable context all are static
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


class NotDescribed(Exception):
    """This model is left to the general path."""


@dataclass(frozen=True, slots=True)
class _Family:
    is_gemma: bool = False  # norms of 1 + weight, four in a layer, scaled embedding
    is_fused: bool = False  # one linear for q, k and v, one for gate and up


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(),
    "qwen3": _Family(),
    "qwen3_moe": _Family(),  # experts are known by their modules
    "mixtral": _Family(),
    "phi3": _Family(is_fused=True),
    "gemma2": _Family(is_gemma=True),
    "gemma3_text": _Family(is_gemma=True),
}
FAMILIES = tuple(_FAMILIES)


def describe(model: nn.Module) -> Decoder:
    """The description of a causal language model of transformers. Raises NotDescribed, with the reason."""
    config: Any = model.config
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise NotDescribed(f"{config.model_type} is not among the families of the fast path")
    try:
        return _describe(model, config, family)
    except (AttributeError, KeyError, TypeError) as error:
        raise NotDescribed(f"{config.model_type} looks different here: {type(error).__name__}: {error}") from error


def _describe(model: nn.Module, config: Any, family: _Family) -> Decoder:
    body: Any = model.model
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in _ACTIVATIONS:
        raise NotDescribed(f"its activation is {activation}")
    if getattr(config, "use_bidirectional_attention", False):
        raise NotDescribed("its attention looks both ways")
    kinds = _layer_kinds(body.layers, config)
    ropes = _ropes(body.rotary_emb, kinds)
    norm = _gemma_norm if family.is_gemma else _plain_norm
    distinct = list(dict.fromkeys(ropes.values()))
    layers = [
        _layer(part, config, family, kind, distinct.index(ropes[kind]), norm)
        for part, kind in zip(body.layers, kinds, strict=True)
    ]
    head_dim = body.layers[0].self_attn.head_dim
    embedding = body.embed_tokens.weight.detach()
    head: Any = model.lm_head
    return Decoder(
        layers=layers,
        embedding=embedding,
        head=head,
        final_norm=norm(body.norm),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        ffn=config.intermediate_size,
        ropes=tuple(distinct),
        epsilon=config.rms_norm_eps,
        scale=float(body.layers[0].self_attn.scaling),
        softcap=getattr(config, "attn_logit_softcapping", None),
        final_softcap=getattr(config, "final_logit_softcapping", None),
        embedding_scale=_embedding_scale(body.embed_tokens),
        activation=_ACTIVATIONS[activation],
        dtype=embedding.dtype,
    )


def _layer(
    part: Any, config: Any, family: _Family, kind: str, rope: int, norm: Callable[[nn.Module], Tensor]
) -> DecoderLayer:
    attention, mlp = part.self_attn, part.mlp
    experts = _experts(mlp)
    gate = up = down = Stacked(())
    if family.is_fused:
        qkv = Stacked((attention.qkv_proj,))
    else:
        qkv = Stacked((attention.q_proj, attention.k_proj, attention.v_proj))
    if not experts:
        down = Stacked((mlp.down_proj,))
        if family.is_fused:
            ffn = config.intermediate_size
            gate, up = Stacked((mlp.gate_up_proj,), 0, ffn), Stacked((mlp.gate_up_proj,), ffn, 2 * ffn)
        else:
            gate, up = Stacked((mlp.gate_proj,)), Stacked((mlp.up_proj,))
    has_head_norms = hasattr(attention, "q_norm")
    return DecoderLayer(
        qkv=qkv,
        output=Stacked((attention.o_proj,)),
        gate=gate,
        up=up,
        down=down,
        input_norm=norm(part.input_layernorm),
        mlp_norm=norm(part.pre_feedforward_layernorm if family.is_gemma else part.post_attention_layernorm),
        query_norm=norm(attention.q_norm) if has_head_norms else None,
        key_norm=norm(attention.k_norm) if has_head_norms else None,
        after_attention=norm(part.post_attention_layernorm) if family.is_gemma else None,
        after_mlp=norm(part.post_feedforward_layernorm) if family.is_gemma else None,
        window=config.sliding_window if kind == "sliding_attention" else None,
        rope=rope,
        experts=experts,
    )


def _experts(mlp: Any) -> Experts | None:
    """What a mixture of experts is made of; None: it is none."""
    held = getattr(mlp, "experts", None)
    if held is None:
        return None
    if strange := {name for name, _ in mlp.named_children()} - {"experts", "gate"}:
        raise NotDescribed(f"beside its experts there is {', '.join(sorted(strange))}")
    if held.gate_up_proj.dim() != 3 or held.down_proj.dim() != 3 or mlp.gate.weight.dim() != 2:
        raise NotDescribed("its experts are of another form")
    return Experts(
        gate=mlp.gate,
        module=held,
        num_chosen=mlp.gate.top_k,
        is_normed=bool(getattr(mlp.gate, "norm_topk_prob", True)),  # where there is no choice, they are
    )


def _layer_kinds(layers: Any, config: Any) -> list[str]:
    """Of each layer, as configurations name them."""
    declared = getattr(config, "layer_types", None)
    if declared:
        kinds = list(declared)
    else:
        slides = getattr(config, "sliding_window", None) is not None
        kinds = ["sliding_attention" if slides else "full_attention"] * len(layers)
    if strange := set(kinds) - {"full_attention", "sliding_attention"}:
        raise NotDescribed(f"it has layers of kind {', '.join(sorted(strange))}")
    return kinds


def _ropes(rotary: Any, kinds: list[str]) -> dict[str, Rope]:
    """By kind of layer."""
    ropes: dict[str, Rope] = {}
    shared: Rope | None = None
    for kind in dict.fromkeys(kinds):
        own = hasattr(rotary, f"{kind}_inv_freq")
        rope_type = rotary.rope_type[kind] if own else rotary.rope_type
        if rope_type not in _ROPE_TYPES:
            raise NotDescribed(f"its rotary positions are of type {rope_type}")
        if own:
            frequencies, scale = getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling")
            ropes[kind] = Rope(frequencies.detach().float(), float(scale))
        else:
            shared = shared or Rope(rotary.inv_freq.detach().float(), float(rotary.attention_scaling))
            ropes[kind] = shared
    return ropes


def _plain_norm(module: Any) -> Tensor:
    weight: Tensor = module.weight.detach().float()
    return weight.contiguous()


def _gemma_norm(module: Any) -> Tensor:
    weight: Tensor = module.weight.detach().float()
    return (1.0 + weight).contiguous()


def _embedding_scale(embedding: Any) -> float:
    scale = getattr(embedding, "embed_scale", None)
    return float(scale.to(embedding.weight.dtype)) if isinstance(scale, Tensor) else float(scale or 1.0)
