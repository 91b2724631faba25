"""``python to_gguf.py CHECKPOINT KIND OUT``: a Qwen3 checkpoint as GGUF. Needs numpy, torch, safetensors and gguf."""

import json
import sys
from pathlib import Path

import gguf
from safetensors import safe_open

KINDS = {"bf16": (gguf.GGMLQuantizationType.BF16, 32), "q8_0": (gguf.GGMLQuantizationType.Q8_0, 7),
         "q4_0": (gguf.GGMLQuantizationType.Q4_0, 2)}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def main(path: Path, kind: str, out: Path) -> None:
    """Write the file."""
    config = json.loads((path / "config.json").read_text())
    number, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(str(out), "qwen3")
    writer.add_name(path.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(file_type)
    _add_tokenizer(writer, json.loads((path / "tokenizer.json").read_text()), config["vocab_size"])

    with safe_open(path / "model.safetensors", "pt") as tensors:

        def add(name: str, source: str) -> None:
            array = tensors.get_tensor(source).float().numpy()
            if array.ndim == 1:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, gguf.quants.quantize(array, number), raw_dtype=number)

        add("token_embd.weight", "model.embed_tokens.weight")
        add("output_norm.weight", "model.norm.weight")
        for layer in range(config["num_hidden_layers"]):
            for theirs, ours in NAMES.items():
                add(f"blk.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: dict, size: int) -> None:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [5] * size
    for text, number in tokenizer["model"]["vocab"].items():
        tokens[number], types[number] = text, 1
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], 3
    merges = [one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
