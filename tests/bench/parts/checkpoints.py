"""Random-weight Qwen3 checkpoints with a real tokeniser, made once into a directory, and the same weights as GGUF."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY = 32768
END, PAD = 2, 0  # <|im_end|>, <|endoftext|>
CONTEXT = 16384
SHAPES: dict[str, dict[str, int]] = {
    "0.3b": {"hidden_size": 1024, "num_hidden_layers": 16, "intermediate_size": 3072},
    "0.5b": {"hidden_size": 1536, "num_hidden_layers": 15, "intermediate_size": 4608},  # a file of 1 GB
    "1b": {"hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 6144},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 512},  # to try the benchmark itself
}
_HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
_TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\\n'}}{% endif %}"
)


def make(directory: Path, name: str) -> Path:
    """The checkpoint of a shape in `directory`, made if it is not there. Deterministic."""
    path = directory / name
    if (path / "model.safetensors").is_file():
        return path
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer(directory)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
        use_sliding_window=False,
        initializer_range=0.05,
        **_HEADS,
        **SHAPES[name],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.model.embed_tokens.weight[END] = 0  # never the most likely, so that every answer has its full length
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    partial = directory / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for file in tokenizer.iterdir():
        shutil.copy(file, partial)
    partial.rename(path)
    return path


def gguf(path: Path, kind: str, python: str) -> Path:
    """The checkpoint at `path` as GGUF of a kind (bf16, q8_0, q4_0), made by an interpreter that has `gguf`."""
    out = path.parent / f"{path.name}-{kind}.gguf"
    if not out.is_file():
        partial = out.with_suffix(".partial")
        subprocess.run([python, str(Path(__file__).with_name("to_gguf.py")), path, kind, partial], check=True)
        partial.rename(out)
    return out


def weight_bytes(path: Path) -> int:
    """Bytes of the weights in the checkpoint."""
    return (path / "model.safetensors").stat().st_size


class Texts:
    """Prompts of exact lengths, each different, from the text that the tokeniser was trained on."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._corpus = "".join(_corpus(3 << 20))
        self._random = random.Random(seed)
        self._frame = len(self._render(""))

    def ids(self, count: int) -> list[int]:
        """A prompt of so many token ids."""
        found: list[int] = []
        while len(found) < count:
            start = self._random.randrange(len(self._corpus) - 20_000)
            found += self._tokenizer.encode(self._corpus[start : start + 20_000]).ids
        return found[:count]

    def message(self, count: int) -> str:
        """A user message that makes a chat prompt of so many tokens, template included."""
        for _ in range(100):
            ids, size = self.ids(count), count - self._frame
            for _ in range(20):  # what is cut within a word tokenises otherwise
                text = self._tokenizer.decode(ids[:size])
                length = len(self._render(text))
                if length == count:
                    return text
                size += count - length
                if not 0 < size <= len(ids):
                    break
        raise AssertionError(f"no prompt of {count} tokens found")

    def _render(self, content: str) -> list[int]:
        text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        return list(self._tokenizer.encode(text).ids)


def _tokenizer(directory: Path) -> Path:
    """A directory with a byte-level BPE tokeniser trained on the standard library's source."""
    path = directory / "tokenizer"
    if (path / "tokenizer.json").is_file():
        return path
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(12 << 20), trainer)
    path.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": _TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (path / "chat_template.jinja").write_text(_TEMPLATE)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def _corpus(limit: int) -> Iterator[str]:
    """Up to `limit` characters of Python source that every installation has."""
    left = limit
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py")):
        if "site-packages" in file.parts:
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")[:left]
        left -= len(text)
        yield text
        if left <= 0:
            return


def directory_for(wanted: str) -> Path:
    """Where checkpoints are kept between runs."""
    base = Path(wanted) if wanted else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plexus-bench"
    base.mkdir(parents=True, exist_ok=True)
    return base


def facts() -> dict[str, Any]:
    """Versions that the figures depend on."""
    import torch
    import transformers

    return {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
