"""Which guessed tokens to compute along with a decode step: as many as pay, by what was measured.

A decode step reads all weights for one token a row; a few more tokens in the same pass cost little. A guess that comes
true is a token for which no step of its own is needed. Outputs are exactly what they would be without: see
`plan.accept`. What a guess costs is known from step times (`Pace`), what it brings from how earlier ones of the same
sequence fared (`Record`), so where guesses fail they soon stop, but for a single one now and then.
"""

import math

from worker.engine.cache_space import CacheSpace
from worker.engine.lookup import Record
from worker.engine.pace import Pace
from worker.engine.plan import Row
from worker.engine.sequence import Sequence
from worker.models.plan import MAX_DRAFTS

_MAX_ROW_DRAFTS = 16
_FORGET = 0.9  # what earlier guesses still count when a new one was judged
_TRIAL_TOKENS = 8192  # after so many without guesses that are held to be too dear, see if they are
_PLAIN_STEP = 32  # every so often a step goes without, to know what that takes


class Speculation:
    """Drafts for decode rows. One for an engine."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._num_steps = 0  # with drafts, one after the other
        self._num_skipped = 0  # tokens of steps in which drafts were too dear

    def rows(self, sequences: list[Sequence], space: CacheSpace, max_tokens: int) -> list[Row]:
        """Decode rows of these sequences, with drafts where they pay."""
        drafts = self._choose(sequences, max_tokens)
        rows = []
        for sequence in sequences:
            length = len(sequence.ids)
            guess = drafts.get(id(sequence), ())
            if guess:
                room = space.room(sequence, length + len(guess)) - length
                guess = guess[: max(0, room)]
                space.grow(sequence, length + len(guess))
            rows.append(Row(sequence, sequence.num_computed, length + len(guess), guess))
        return rows

    def _choose(self, sequences: list[Sequence], max_tokens: int) -> dict[int, tuple[int, ...]]:
        num_rows = len(sequences)
        step_s = self._pace.decode_s(num_rows)
        if not step_s or self._num_steps >= _PLAIN_STEP:
            self._num_steps = 0
            return {}
        any_s, each_s = self._pace.draft_cost_s(num_rows)
        least = each_s * num_rows / step_s  # chance from which a draft pays for itself, whatever others cost
        is_trial = least >= 1
        if is_trial and not self._is_trial_due(num_rows):
            return {}
        left = min(max_tokens - num_rows, MAX_DRAFTS)
        drafts: dict[int, tuple[int, ...]] = {}
        gain = 0.0  # tokens expected of drafts
        num_drafts = 0
        is_probe = is_trial
        for sequence in sequences:
            record, length = sequence.record, len(sequence.ids)
            if sequence.grammar or length < record.resume_at:
                continue
            wanted = 1 if is_trial or record.is_paused else _num_wanted(record.chance, least)
            if not wanted:
                record.pause(length)
                continue
            guess = record.lookup.find(sequence.ids, min(wanted, left, sequence.max_ids - length - 1))
            if guess:
                drafts[id(sequence)] = guess
                left -= len(guess)
                num_drafts += len(guess)
                gain += _expected(record.chance, len(guess))
                is_probe |= record.is_paused
                if is_trial:
                    break
        if not is_probe and gain * step_s < (any_s + each_s * num_drafts) * num_rows:
            drafts.clear()
        self._num_steps = self._num_steps + 1 if drafts else 0
        return drafts

    def _is_trial_due(self, num_rows: int) -> bool:
        """Where guesses cannot pay by what is known of their cost, look now and then whether that still holds."""
        self._num_skipped += num_rows
        if self._num_skipped < _TRIAL_TOKENS:
            return False
        self._num_skipped = 0
        return True


def judge(record: Record, num_drafts: int, num_accepted: int, num_ids: int) -> None:
    """Note how a row's drafts fared, of a sequence that now has so many tokens.

    Those behind the first wrong one say nothing.
    """
    record.hits = _FORGET * record.hits + num_accepted
    record.tries = _FORGET * record.tries + num_accepted + (num_accepted < num_drafts)
    if num_accepted:
        record.is_paused = False
    elif record.is_paused:
        record.pause(num_ids)


def _num_wanted(chance: float, least: float) -> int:
    """How many drafts pay that come true with such a chance each, if one must with the chance `least` at least."""
    if chance < least:
        return 0
    return max(1, min(_MAX_ROW_DRAFTS, int(math.log(least) / math.log(min(chance, 0.999)))))


def _expected(chance: float, num_drafts: int) -> float:
    """Drafts that come true, on average."""
    return chance * (1 - chance**num_drafts) / (1 - chance)
