"""The measures of a model that its memory depends on, read from config.json under any family's words for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models.errors import NotServable
from worker.models.files import CONFIG, read_json

_WORDS = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"),
    "vocab": ("vocab_size", "padded_vocab_size"),
}
# Of families whose published config.json leaves out what equals the defaults, for readers without transformers.
_DEFAULTS: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    },
}
# The same of a language model that is part of another.
_PART_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11_008,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
    },
}
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "text_model_config")
_ALL_SLIDE = ("mistral", "phi3")  # these name no layers: where there is a window, every layer has it
_UNKNOWN_CONTEXT = 4096  # for a model without position limit whose tokeniser states none either


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's measures. Per token and layer the cache holds `kv_items` numbers, keys and values together."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_items: int
    ffn: int
    vocab: int
    context_limit: int  # tokens; the model's own
    dtype: str  # the checkpoint's, as config.json states it; "" if it does not
    model_type: str
    window: int = 0  # tokens that a sliding layer sees
    window_layers: int = 0  # how many slide, as far as config.json says; more than that is found after loading


def read_shape(path: Path, config: Mapping[str, Any] | None = None) -> Shape:
    """The shape of the model in `path`. Raises NotServable if config.json does not tell.

    `config` is the complete configuration where the caller has it: config.json may leave out what equals its family's
    defaults, and only transformers knows those.
    """
    outer = dict(config) if config is not None else read_json(path / CONFIG)
    text = next((outer[part] for part in _TEXT_PARTS if isinstance(outer.get(part), dict)), outer)
    parts = _PART_DEFAULTS.get(str(text.get("model_type")), {}) if text is not outer else {}
    text = parts | _DEFAULTS.get(str(text.get("model_type")), {}) | text

    def find(what: str, default: int | None = None) -> int:
        for source in (text, outer):
            for word in _WORDS[what]:
                if isinstance(source.get(word), int):
                    return int(source[word])
        if default is None:
            raise NotServable(f"{path / CONFIG} does not state {_WORDS[what][0]}; add it from the model's family")
        return default

    hidden, heads = find("hidden"), find("heads")
    kv_heads = 1 if text.get("multi_query") and not text.get("new_decoder_architecture") else find("kv_heads", heads)
    head_dim = int(text.get("head_dim") or hidden // heads)
    ffn = find("ffn", 4 * hidden)
    if isinstance(text.get("moe_intermediate_size"), int):  # experts in use stand side by side
        routed = int(text.get("num_experts_per_tok") or 1)
        ffn = max(ffn, routed * text["moe_intermediate_size"])
    layers = find("layers")
    window, window_layers = _windows(text, layers)
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_items=_kv_items(text, heads, kv_heads, head_dim),
        ffn=ffn,
        vocab=find("vocab"),
        context_limit=find("context", _tokenizer_limit(path)),
        dtype=_dtype(text) or _dtype(outer),
        model_type=str(outer.get("model_type", "")),
        window=window,
        window_layers=window_layers,
    )


def _kv_items(text: Mapping[str, Any], heads: int, kv_heads: int, head_dim: int) -> int:
    """Numbers a token keeps in one layer. Latent attention is cached expanded, as every head sees it."""
    if isinstance(text.get("kv_lora_rank"), int):
        key = int(text.get("qk_nope_head_dim", 0)) + int(text.get("qk_rope_head_dim", 0))
        return heads * (key + int(text.get("v_head_dim", key)))
    return 2 * kv_heads * head_dim


def _windows(text: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """The window and how many layers slide."""
    window, kinds = text.get("sliding_window"), text.get("layer_types")
    if not isinstance(window, int) or window <= 0 or text.get("use_sliding_window") is False:
        return 0, 0
    if isinstance(kinds, list):
        return window, kinds.count("sliding_attention")
    return window, layers if text.get("model_type") in _ALL_SLIDE else 0


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")


def _tokenizer_limit(path: Path) -> int:
    file = path / "tokenizer_config.json"
    limit = read_json(file).get("model_max_length") if file.is_file() else None
    return int(limit) if isinstance(limit, int) and 0 < limit < 10_000_000 else _UNKNOWN_CONTEXT
