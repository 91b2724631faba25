"""The small JSON files of a model directory: what they say about tokens, templates and limits.

Files read, all optional but for config.json: config.json, generation_config.json, tokenizer_config.json,
special_tokens_map.json, chat_template.jinja, additional_chat_templates/*.jinja, chat_template.json.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.text.errors import CheckpointError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# How the families name the longest sequence they were made for.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length")

# Tokenizers write numbers like 1e30 where they mean "no limit".
_SANE_CONTEXT = 1 << 30


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling that the model's authors recommend (generation_config.json); None where they say nothing."""

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model directory without its weights and vocabulary."""

    path: Path
    vocab_rows: int  # rows of the embedding table; 0: not told
    context_limit: int  # tokens; 0: not told
    eos_ids: frozenset[int]  # from config.json and generation_config.json
    named_tokens: dict[str, str]  # bos_token, eos_token …, as chat templates see them
    added_tokens: dict[int, dict[str, Any]]  # of tokenizer_config.json
    split_special_tokens: bool
    templates: dict[str, str]  # chat templates by name; the usual one is "default"
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read the files under `path`. Raises `CheckpointError` on a missing config.json or on broken JSON."""
        config = _read_json(path / "config.json")
        if not config:
            raise CheckpointError(path, "no config.json: this is not a model directory")
        generation = _read_json(path / "generation_config.json")
        tokenizer = _read_json(path / "tokenizer_config.json")
        return cls(
            path=path,
            vocab_rows=_first_int(config, ("vocab_size",)),
            context_limit=_first_int(config, _CONTEXT_KEYS) or _limit(tokenizer.get("model_max_length")),
            eos_ids=frozenset([*_ids(generation.get("eos_token_id")), *_config_eos(config)]),
            named_tokens=_named_tokens(tokenizer, _read_json(path / "special_tokens_map.json")),
            added_tokens={int(key): value for key, value in tokenizer.get("added_tokens_decoder", {}).items()},
            split_special_tokens=bool(tokenizer.get("split_special_tokens")),
            templates=_templates(path, tokenizer),
            generation=_generation(generation),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(path, f"not valid JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration itself, then that of its language model (multimodal checkpoints nest it)."""
    yield config
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            yield config[key]


def _first_int(config: dict[str, Any], keys: tuple[str, ...]) -> int:
    for section in _sections(config):
        for key in keys:
            limit = _limit(section.get(key))
            if limit:
                return limit
    return 0


def _limit(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < _SANE_CONTEXT else 0


def _ids(value: Any) -> list[int]:
    """`eos_token_id` is one id, several, or null."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def _config_eos(config: dict[str, Any]) -> Iterator[int]:
    for section in _sections(config):
        yield from _ids(section.get("eos_token_id"))


def _named_tokens(tokenizer: dict[str, Any], special_map: dict[str, Any]) -> dict[str, str]:
    named = {}
    for name in NAMED_TOKENS:
        value = tokenizer[name] if name in tokenizer else special_map.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _templates(path: Path, tokenizer: dict[str, Any]) -> dict[str, str]:
    """Files of their own come before tokenizer_config.json, which comes before a processor's chat_template.json."""
    templates = {file.stem: _read_text(file) for file in sorted(path.glob("additional_chat_templates/*.jinja"))}
    if (path / "chat_template.jinja").is_file():
        templates["default"] = _read_text(path / "chat_template.jinja")
    if templates:
        return templates
    for source in (tokenizer, _read_json(path / "chat_template.json")):
        template = source.get("chat_template")
        if isinstance(template, str):
            return {"default": template}
        if isinstance(template, list):
            return {entry["name"]: entry["template"] for entry in template}
        if isinstance(template, dict):
            return dict(template)
    return {}


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _generation(config: dict[str, Any]) -> GenerationDefaults:
    def number(key: str) -> float | None:
        value = config.get(key)
        return float(value) if isinstance(value, int | float) else None

    top_k = config.get("top_k")
    return GenerationDefaults(
        do_sample=config.get("do_sample") is True,
        temperature=number("temperature"),
        top_p=number("top_p"),
        top_k=top_k if isinstance(top_k, int) else None,
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
    )
