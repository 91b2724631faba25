"""Model directories without weights, and what they load as."""

import json
from pathlib import Path

import pytest

from tests.support.text_models import (
    GEMMA_SPECIALS,
    GEMMA_TEMPLATE,
    HARMONY_SPECIALS,
    MISTRAL_SPECIALS,
    MISTRAL_TEMPLATE,
    sentencepiece_tokenizer,
    write_model,
)
from tests.support.tiny import write_tokenizer
from worker.text.model_text import ModelText


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories by style."""
    root = tmp_path_factory.mktemp("models")
    for style in ("qwen3", "llama3"):
        tokens = write_tokenizer(root / style, style)
        (root / style / "config.json").write_text(
            json.dumps({"vocab_size": 448, "max_position_embeddings": 512, "eos_token_id": tokens["eos"][0]})
        )
        (root / style / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens["eos"]}))
    write_model(root / "mistral", sentencepiece_tokenizer("llama", MISTRAL_SPECIALS), template=MISTRAL_TEMPLATE)
    write_model(root / "gemma", sentencepiece_tokenizer("gemma", GEMMA_SPECIALS), template=GEMMA_TEMPLATE)
    harmony = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    write_model(
        root / "harmony",
        sentencepiece_tokenizer("gemma", HARMONY_SPECIALS),
        template=harmony + "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        generation={"eos_token_id": []},
    )
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def texts(model_dirs: dict[str, Path]) -> dict[str, ModelText]:
    """What `model_dirs` load as."""
    return {style: ModelText.load(path) for style, path in model_dirs.items()}
