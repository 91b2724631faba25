"""Tiny random models of many architectures, and what transformers itself generates with them.

Weights are wilder than an initialiser would make them, norms and biases included: greedy output then varies from
token to token, and a dropped scale or bias shows.
"""

import functools
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, logging

logging.set_verbosity_error()

VOCABULARY = 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,  # a tied head mostly repeats the last token
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_OLD: dict[str, Any] = {key: _COMMON[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")} | {
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_SLIDING = {"sliding_window": 9}
_SLIDING_AND_FULL = _SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

# Full attention, sliding windows, both; soft caps, sinks, experts, latent heads; learned, rotary and partial positions.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": _COMMON,
    "llama": _COMMON,
    "mistral": _COMMON | _SLIDING,
    "gemma3_text": _COMMON | _SLIDING_AND_FULL,
    "qwen3_moe": _COMMON | _EXPERTS,
    "gemma2": _COMMON | _SLIDING_AND_FULL | {"attn_logit_softcapping": 2.0},
    "gpt_oss": _COMMON | _EXPERTS | _SLIDING_AND_FULL,
    "deepseek_v3": {key: value for key, value in (_COMMON | _EXPERTS | _LATENT).items() if key != "head_dim"},
    "mixtral": _COMMON | _EXPERTS,
    "stablelm": _COMMON,
    "nemotron": _COMMON,
    "qwen2": _COMMON,
    "phi3": _COMMON | _SLIDING,
    "olmo2": _COMMON,
    "cohere2": _COMMON | _SLIDING_AND_FULL,
    "granite": _COMMON,
    "gpt2": _OLD,
    "opt": _OLD | {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "gpt_neox": _OLD | {"intermediate_size": 64},
}


def make_model(model_type: str, **changes: Any) -> nn.Module:
    """A model in evaluation mode, float32; the same arguments always give the same weights."""
    known = CONFIGS.get(model_type, _COMMON)
    config = AutoConfig.for_model(model_type, **(known | changes))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 0.25)
            else:
                parameter.add_(noise * 0.3)
    return model  # type: ignore[no-any-return]


@functools.cache
def _reference(model_type: str) -> nn.Module:
    model = make_model(model_type)
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    return model


@functools.cache
def generate(model_type: str, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """What transformers generates greedily after the prompt."""
    ids = torch.tensor([prompt])
    out = _reference(model_type).generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]
