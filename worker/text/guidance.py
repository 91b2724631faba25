"""The constraint library (llguidance), and what is asked of it: bounded work, errors instead of crashes.

A grammar comes from a client, so it is hostile until shown otherwise. The library counts its own work (fuel, items,
states) and gives up with a message; measured, the worst texts within the bounds here cost half a second. Two things it
does not bound: recursion over long chains of rules or references, which at 1000 links overflows an ordinary thread's
stack and ends the process, and terminals built from terminals, whose cost grows with the square of their number.
Hence `MAX_GRAMMAR_BYTES`, `worker.text.schema.MAX_REFERENCES`, the bound on rules of a client's own grammar, and
`Compiler` threads, which have a stack of their own.
"""

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

MAX_GRAMMAR_BYTES = 1 << 20  # of a whole grammar: several tools
_STACK_BYTES = 256 << 20  # address space; memory is taken as it is used
_NO_TEXT = "no text can match it"
_EXCERPT = re.compile(r"^ *(\d+ \|.*|\^ *)$", re.MULTILINE)  # lines of a grammar, which may be ours
_stack_lock = threading.Lock()

T = TypeVar("T")

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms for regular expressions
    step_lexer_fuel=200_000,  # 15 ms for one mask
    step_max_items=50_000,  # 3 ms for one mask
    max_lexer_states=50_000,  # 100 MB at most of one sequence
    verbose_errors=False,  # else a message holds the state of the parser
)


class Compiler:
    """Threads that compile: with a large stack, apart from those that serve everything else."""

    def __init__(self, name: str, *, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, function: Callable[..., T], *arguments: object) -> "Future[T]":
        """Run it there."""
        with _stack_lock:  # a thread takes its stack's size from a setting of the process when it starts
            before = threading.stack_size(_STACK_BYTES)
            try:
                return self._executor.submit(function, *arguments)
            finally:
                threading.stack_size(before)

    def close(self) -> None:
        """Give up what has not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> tuple[LLMatcher | None, str]:
    """Return a matcher at its beginning, or None and why not. Takes up to half a second: not on an event loop."""
    if len(grammar) > MAX_GRAMMAR_BYTES:
        return None, f"the grammar has {len(grammar)} bytes; {MAX_GRAMMAR_BYTES} are the limit"
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        return None, explain(matcher.get_error())
    matcher.compute_bitmask()  # some limits show only here; it also warms what all copies share
    if matcher.is_error():
        return None, explain(matcher.get_error())
    if matcher.is_stopped() and not matcher.is_accepting():
        return None, _NO_TEXT
    return matcher, ""


def explain(error: str) -> str:
    """A message of the library, short enough for a client."""
    if error.startswith("NoExtension"):
        return _NO_TEXT
    text = _EXCERPT.sub("", error.partition("<state>")[0].replace("<non-verbose/>", ""))
    text = " ".join(text.split())
    text = text.replace("Unimplemented keys:", "unsupported keywords")
    return text[:300] or "the library gave no reason"


def byte_tokenizer(vocab_size: int) -> LLTokenizer:
    """A stand-in for the model's own tokenizer: a token a byte, and ids without text up to `vocab_size`.

    Enough to find out whether a grammar compiles, at a thousandth of the memory.
    """
    return LLTokenizer(TokenizerWrapper(_Bytes(max(vocab_size, 257))), slices=[])


class _Bytes:
    """The tokenizer that `TokenizerWrapper` wants: the last id is the end of a text."""

    bos_token_id = None

    def __init__(self, vocab_size: int) -> None:
        self.eos_token_id = vocab_size - 1
        self.tokens = [bytes([byte]) for byte in range(256)] + [b""] * (vocab_size - 257) + [b"\xff<end>"]
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)
