"""Holding outputs to grammars: which tokens may come next, by what has come.

A grammar arrives with a job as text, and the front has found that it compiles. Compiling, and replaying what was
delivered of a choice before, is done on a thread of its own; a job waits for that without holding up any other. After
that each choice has a `Matcher`, which stays with its sequence through preemption.
"""

from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from numpy.typing import NDArray

from worker.engine.errors import GrammarRefused
from worker.protocol import Submit
from worker.text.checkpoint import Checkpoint
from worker.text.guidance import Compiler, compile_grammar, explain
from worker.text.markup import mark_ids
from worker.text.vocabulary import Vocabulary

_KEPT = 64  # compiled grammars
_WORD_BITS = 32

Masks = NDArray[np.int32]
"""Bit n of a row, counted from the lowest of its first word, says whether token n may come; [rows, words]."""


class Matcher:
    """Where one choice stands in its grammar."""

    __slots__ = ("_matcher", "error")

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.error = ""  # why it cannot go on; the choice's job fails then, alone

    @property
    def is_over(self) -> bool:
        """Whether the output is complete and nothing but an end token can follow."""
        return not self.error and self._matcher.is_stopped() and self._matcher.is_accepting()

    def accept(self, ids: list[int]) -> None:
        """The output goes on like this."""
        if self.error or self._matcher.is_stopped():  # what comes after the end is the end token
            return
        if not self._matcher.consume_tokens(ids):
            self.error = explain(self._matcher.get_error())

    def fill(self, masks: Masks, row: int) -> None:
        """Write the mask of the next token."""
        self._matcher.unsafe_compute_mask_ptr(masks[row].ctypes.data, masks.shape[1] * 4)

    def note_error(self) -> None:
        """See whether the last mask came about. The library stops where a mask would be too much work."""
        if not self.error and self._matcher.is_error():
            self.error = explain(self._matcher.get_error())

    @property
    def raw(self) -> LLMatcher:
        """The library's own."""
        return self._matcher


class Grammars:
    """Compiles, for one model. The tokenizer is made at the first job that needs it: that takes a second and 100 MB.

    Args:
        path: the model's directory.
        vocab_size: width of the logits.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self._compiler = Compiler("grammar")
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()  # at their beginning; the latest used last

    def open(self, job: Submit) -> "Future[list[Matcher]]":
        """A matcher for each choice of the job, in their order. The future raises `GrammarRefused`."""
        return self._compiler.submit(self._open, job)

    def close(self) -> None:
        """Give up what has not begun."""
        self._compiler.close()

    def _open(self, job: Submit) -> list[Matcher]:
        beginning = self._compile(job.grammar)
        matchers = []
        for choice in job.choices:
            matcher = Matcher(beginning.deep_copy())
            matcher.accept(choice.resume)
            if matcher.error:
                raise GrammarRefused(f"what was delivered before does not fit it: {matcher.error}")
            matchers.append(matcher)
        return matchers

    def _compile(self, grammar: str) -> LLMatcher:
        known = self._compiled.get(grammar)
        if known is not None:
            self._compiled.move_to_end(grammar)
            return known
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._path, self._vocab_size)
        matcher, problem = compile_grammar(self._tokenizer, grammar)
        if matcher is None:
            raise GrammarRefused(problem)
        self._compiled[grammar] = matcher
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return matcher


def load_tokenizer(path: Path, vocab_size: int) -> LLTokenizer:
    """The library's view of a model's tokens, in which no mark is text."""
    checkpoint = Checkpoint.read(path)
    vocabulary = Vocabulary.load(checkpoint)
    ends = sorted(checkpoint.eos_ids | ({vocabulary.eos_id} if vocabulary.eos_id is not None else set()))
    return LLTokenizer(
        vocabulary.to_json(special_ids=mark_ids(vocabulary)),
        n_vocab=vocab_size,
        eos_token=[id for id in ends if id < vocab_size] or [vocab_size - 1],
    )


class MaskMaker:
    """Masks of a whole batch, computed side by side where there are several."""

    def __init__(self, *, threads: int) -> None:
        self._executor = LLExecutor(num_threads=max(1, threads)) if threads > 1 else None

    def make(self, matchers: list[Matcher], vocab_size: int) -> Masks:
        """One mask for each matcher. Afterwards those with an `error` have none."""
        masks = np.full((len(matchers), -(-vocab_size // _WORD_BITS)), -1, dtype=np.int32)
        sound = [(row, matcher) for row, matcher in enumerate(matchers) if not matcher.error]
        if self._executor is None or len(sound) < 2:
            for row, matcher in sound:
                matcher.fill(masks, row)
        else:
            pairs = [(matcher.raw, row) for row, matcher in sound]
            self._executor.unsafe_compute_mask_ptr(pairs, masks.ctypes.data, masks.shape[1] * 4, len(matchers))
        for row, matcher in sound:
            matcher.note_error()
            if matcher.error:
                masks[row] = -1
        return masks
