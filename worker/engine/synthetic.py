"""A back end without a model: for capacity tests of the messaging, and wherever the words do not matter.

It replaces forward and sampling only; scheduler, cache book-keeping and protocol are the real ones. A token is a
function of (seed, choice, position) among the vocabulary's plain words, so a resumed or repeated job says the same.
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worker.engine.plan import Sampled, StepPlan, Transfer
from worker.models.files import read_json
from worker.protocol import ChoiceLogprob

_WORD = re.compile(r"[Ġ▁]?[A-Za-z]{2,}")
_MASK = (1 << 64) - 1
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class SyntheticRunner:
    """Samples words at a set pace.

    Args:
        words: the ids to choose from.
        vocab_size: ids that prompts may hold.
        tokens_per_s: of each sequence, however many run; 0: as fast as possible.
        prefill_tokens_per_s: of all prompts together; 0: as fast as possible.
        ballast: held for as long as the runner lives, for tests of memory.
        clock, sleep: seconds.
    """

    def __init__(
        self,
        words: list[int],
        vocab_size: int,
        *,
        tokens_per_s: float = 0.0,
        prefill_tokens_per_s: float = 0.0,
        ballast: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not words:
            raise ValueError("the vocabulary holds no plain words; use a model directory with a tokenizer.json")
        self.vocab_size = vocab_size
        self._words = words
        self._ballast = ballast
        self._decode_s = 1 / tokens_per_s if tokens_per_s > 0 else 0.0
        self._prefill_s = 1 / prefill_tokens_per_s if prefill_tokens_per_s > 0 else 0.0
        self._clock, self._sleep = clock, sleep

    def run(self, plan: StepPlan) -> list[Sampled]:
        """A word for each kept position."""
        started = self._clock()
        turns = plan.turns
        results = []
        for turn in turns:
            token = self._word(turn.sample.seed, turn.choice, turn.num_output)
            certain = ChoiceLogprob(token, 0.0, [(token, 0.0)]) if turn.sample.logprobs is not None else None
            results.append(Sampled(token, certain))
        duration = self._prefill_s * (plan.num_tokens - len(turns)) + (self._decode_s if turns else 0.0)
        if duration and (left := started + duration - self._clock()) > 0:
            self._sleep(left)
        return results

    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """There is nothing to move."""

    def _word(self, seed: int, choice: int, position: int) -> int:
        mixed = (seed * _ODD[0] + choice * _ODD[1] + (position + 1) * _ODD[2]) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * _ODD[1]) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _ODD[2]) & _MASK
        return self._words[(mixed ^ (mixed >> 31)) % len(self._words)]


def plain_words(path: Path) -> list[int]:
    """The ids in tokenizer.json that are plain ASCII words, specials and added tokens left out."""
    tokenizer = read_json(path / "tokenizer.json")
    vocabulary: Any = tokenizer["model"]["vocab"]
    tokens = vocabulary.items() if isinstance(vocabulary, dict) else ((v[0], i) for i, v in enumerate(vocabulary))
    added = {token["id"] for token in tokenizer.get("added_tokens", [])}
    return sorted(id_ for token, id_ in tokens if _WORD.fullmatch(token) and id_ not in added)
