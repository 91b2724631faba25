"""The demo model's tokenizer and chat template: byte-level BPE in the manner of Qwen, learned from the lessons."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from worker.demo import TEXT_DIRECTORY
from worker.demo.lessons import Lesson

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
# Not special, as in Qwen3: they are text that a parser reads.
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
VOCABULARY = 1280
CONTEXT_TOKENS = 65536

# Contractions, words, single digits, punctuation, line ends, spaces. A small word takes the space before it along, a
# capitalised one does not: a name is then the same tokens in a question and in quotes, and easy to copy.
_PIECES = (
    r"'(?i:[sdmt]|ll|ve|re)| ?[\p{Ll}_]+|\p{Lu}\p{L}*|\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}_]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (TEXT_DIRECTORY / "chat_template.jinja").read_text(encoding="utf-8")


def train(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of `VOCABULARY` entries learned from `texts`; all 256 bytes are among them."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = VOCABULARY - len(SPECIAL) - len(MARKERS)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(
            f"the text gave {tokenizer.get_vocab_size()} entries, {VOCABULARY} were wanted: it is too short"
        )
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja into `directory`."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


class Renderer:
    """The chat template compiled once, with the `tojson` that chat templates expect (no HTML escapes)."""

    def __init__(self) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(CHAT_TEMPLATE)

    def prompt(self, lesson: Lesson) -> str:
        """The text that the model reads before it writes the completion."""
        return self.text(lesson.messages, tools=lesson.tools, enable_thinking=lesson.thinking)

    def text(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        """`messages` as the model reads them, ready for its turn unless `add_generation_prompt` is false."""
        return self._template.render(**{"messages": messages, "add_generation_prompt": True, **variables})
