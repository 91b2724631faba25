"""How models set their reasoning apart: a table of conventions, and which of them a model follows."""

from collections.abc import Sequence

from worker.text.marks import Mark
from worker.text.vocabulary import Vocabulary

# Opening and closing marker. The first pair that a model knows is its convention.
CONVENTIONS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM-4.5, MiniMax, Nemotron
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)


_TAIL_TOKENS = 16


class ReasoningMarks:
    """The pair of markers that one model uses."""

    def __init__(self, opening: str, closing: str) -> None:
        self.opening = Mark("reasoning_open", opening)
        self.closing = Mark("reasoning_close", closing)

    @classmethod
    def detect(cls, vocabulary: Vocabulary, template: str) -> "ReasoningMarks | None":
        """Return the pair that is in the vocabulary, else the pair that the template's source mentions."""
        for opening, closing in CONVENTIONS:
            if vocabulary.id_of(opening) is not None and vocabulary.id_of(closing) is not None:
                return cls(opening, closing)
        for opening, closing in CONVENTIONS:
            if opening in template and closing in template:
                return cls(opening, closing)
        return None

    def is_open(self, prompt_tail: str) -> bool:
        """Whether a prompt that ends like this has opened the block for the model.

        Only white space may follow the marker: the same characters inside a user's message open nothing.
        """
        return prompt_tail.rstrip().endswith(self.opening.text.rstrip())

    def is_closed(self, prompt_tail: str) -> bool:
        """Whether a prompt that ends like this has answered for the model that it need not reason."""
        return prompt_tail.rstrip().endswith(self.closing.text.rstrip())

    def tail(self, vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> str:
        """What may hold a marker, and white space behind it, of the end of a prompt; special tokens by name."""
        enough, text = max(len(self.opening.text), len(self.closing.text)), ""
        for id in reversed(prompt_ids[-_TAIL_TOKENS:]):
            text = vocabulary.token_text(id) + text
            if len(text.rstrip()) >= enough:
                break
        return text
