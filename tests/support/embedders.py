"""Small embedding models with random weights, laid out as sentence-transformers repositories are."""

import json
from pathlib import Path
from typing import Any

from tests.support import tiny

SENTENCES = [
    "The river rises in the hills.",
    "A letter has a sender, a receiver and a seal.",
    "lamp",
    "People live along it and send letters up and down in boats, and when a boat is late, someone lights a lamp.",
]


def write_modules(path: Path, pooling: str, *, normalize: bool = True, dense: int = 0) -> Path:
    """modules.json and what it names, beside the transformer in `path`; `dense`: features of a dense layer."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": index, "path": f"{index}_{kind}" if index else "", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    if dense:
        import torch
        from safetensors.torch import save_file

        hidden = json.loads((path / "config.json").read_text())["hidden_size"]
        (path / "2_Dense").mkdir()
        settings: dict[str, Any] = {
            "in_features": hidden,
            "out_features": dense,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        (path / "2_Dense" / "config.json").write_text(json.dumps(settings))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            tensors = {"linear.weight": torch.randn(dense, hidden), "linear.bias": torch.randn(dense)}
        save_file(tensors, path / "2_Dense" / "model.safetensors")
    return path


def make_qwen3(path: Path, pooling: str = "lasttoken") -> Path:
    """A decoder with the pooling of its last token."""
    return write_modules(tiny.make_checkpoint(path, "qwen3", num_hidden_layers=2), pooling)


def make_bert(path: Path, pooling: str = "mean_tokens", *, normalize: bool = True, dense: int = 0) -> Path:
    """An encoder with a WordPiece tokeniser."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel

    path.mkdir(parents=True)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 64, "tokenizer_class": "BertTokenizer"})
    )
    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertModel(config, add_pooling_layer=False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return write_modules(path, pooling, normalize=normalize, dense=dense)
