"""Holding answers to a grammar, as far as a front is concerned: write it, find out that it compiles, remember that."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import blake2b

from llguidance import LLTokenizer

from shared.messages import Constraint, Prompt
from worker.text.errors import PromptError
from worker.text.grammar import Reasoning, Style, is_constrained, parts, write
from worker.text.guidance import Compiler, byte_tokenizer, compile_grammar

_KEPT = 512  # verdicts


class Constrainer:
    """Grammars of one model's answers. The work is done on a thread of its own, whatever a client sends."""

    def __init__(self, style: Style, vocab_size: int) -> None:
        self._style = style
        self._vocab_size = vocab_size
        self._compiler = Compiler("grammar")
        self._tokenizer: LLTokenizer | None = None
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # by digest of a grammar: empty, or what is wrong

    def begin(
        self, prompt: Prompt, constraint: Constraint | None, reasons: Callable[[], Reasoning]
    ) -> "Future[str] | None":
        """The grammar of an answer, found to compile; None where nothing constrains it. `reasons`: how it may begin.

        The future raises `PromptError`, which names the field that is at fault.
        """
        if not is_constrained(prompt, constraint):
            return None
        return self._compiler.submit(self.grammar, prompt, constraint, reasons())

    def grammar(self, prompt: Prompt, constraint: Constraint | None, reasoning: Reasoning) -> str:
        """As `begin`, on this thread."""
        text = write(prompt, constraint, self._style, reasoning)
        if not text:
            return ""
        self._check_parts(prompt, constraint)  # also because reasoning in front would hide what nothing can match
        if problem := self._problem(text):
            raise PromptError(f"The answer cannot be constrained like this: {problem}.", "response_format")
        return text

    def close(self) -> None:
        """Give up what has not begun."""
        self._compiler.close()

    def _check_parts(self, prompt: Prompt, constraint: Constraint | None) -> None:
        """Raise for the first thing of the client's that is at fault on its own, and name its field."""
        for param, text in parts(prompt, constraint, self._style):
            if problem := self._problem(text):
                raise PromptError(f"{param} cannot be enforced: {problem}.", param)

    def _problem(self, grammar: str) -> str:
        digest = blake2b(grammar.encode("utf-8", "replace"), digest_size=16).digest()
        known = self._verdicts.get(digest)
        if known is not None:
            self._verdicts.move_to_end(digest)
            return known
        if self._tokenizer is None:
            self._tokenizer = byte_tokenizer(self._vocab_size)
        _, problem = compile_grammar(self._tokenizer, grammar)
        self._verdicts[digest] = problem
        if len(self._verdicts) > _KEPT:
            self._verdicts.popitem(last=False)
        return problem
