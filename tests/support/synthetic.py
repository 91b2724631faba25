"""A model directory as far as the synthetic back end reads it: a tokeniser and a configuration, no weights."""

import json
from pathlib import Path
from typing import Any

from shared.records import ModelRecord
from tests.support.tiny import write_tokenizer


def write_synthetic(directory: Path, context_limit: int = 512) -> Path:
    """Write it, and return it."""
    tokens = write_tokenizer(directory)
    config = {
        "model_type": "qwen3",
        "vocab_size": 448,
        "max_position_embeddings": context_limit,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "eos_token_id": tokens["eos"][0],
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def synthetic_model(id: str, directory: Path, tokens_per_s: float = 40.0, **fields: Any) -> ModelRecord:
    """An entry for it; a replica takes 256 MB."""
    return ModelRecord(
        id=id, source=str(directory), backend="synthetic", options={"tokens_per_s": tokens_per_s}, **fields
    )
