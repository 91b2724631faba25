"""Which guessed tokens to compute along with a decode step: as many as pay, by what was measured.

A decode step reads all weights for one token a row; a few more tokens in the same pass cost little. A guess that comes
true is a token for which no step of its own is needed. Outputs are exactly what they would be without: see
`plan.accept`. What a guess costs is known from step times (`Pace`), what it brings from how earlier ones of the same
sequence fared (`Record`), so where guesses fail they soon stop, but for a single one now and then.

Guesses come from the sequence's own tokens (`lookup`), which costs nothing, and where these suggest nothing from a
draft model, if there is one (`draft_model`), whose time counts as theirs.
"""

import math
from typing import NamedTuple

from worker.engine.cache_space import CacheSpace
from worker.engine.draft_model import DraftModel
from worker.engine.lookup import Record
from worker.engine.pace import Pace
from worker.engine.plan import Row
from worker.engine.sequence import Sequence
from worker.models.plan import MAX_DRAFTS

_MAX_ROW_DRAFTS = 16
_FORGET = 0.9  # what earlier guesses still count when a new one was judged
_TRIAL_TOKENS = 8192  # after so many without guesses that even if right are too dear, see if that still holds
_PLAIN_STEP = 32  # every so often a step goes without, to know what that takes


class _Terms(NamedTuple):
    """What guesses cost and bring in a step, as it was measured."""

    num_rows: int
    step_s: float  # without guesses
    any_s: float  # more, for having any
    each_s: float  # and for each

    def least(self, more_s: float = 0.0) -> float:
        """The chance from which a guess pays for itself, if making it costs so much more."""
        return (self.each_s + more_s) * self.num_rows / self.step_s

    def pays(self, gain: float, cost_s: float) -> bool:
        """Whether so many tokens, expected of guesses, are worth the time."""
        return gain * self.step_s >= cost_s * self.num_rows


class _Wish(NamedTuple):
    """A sequence of which guesses are wanted, and how many."""

    sequence: Sequence
    num_drafts: int


class Speculation:
    """Drafts for decode rows. One for an engine. `model`: whom to ask where looking up finds nothing."""

    def __init__(self, pace: Pace, model: DraftModel | None = None) -> None:
        self._pace = pace
        self._model = model
        self._num_steps = 0  # with drafts, one after the other
        self._num_skipped = 0  # tokens of steps in which drafts were too dear
        self._num_unasked = 0  # and those of the draft model

    def rows(self, sequences: list[Sequence], space: CacheSpace, max_tokens: int) -> list[Row]:
        """Decode rows of these sequences, with drafts where they pay."""
        drafts = self._choose(sequences, space, max_tokens)
        rows = []
        for sequence in sequences:
            length = len(sequence.ids)
            guess = drafts.get(id(sequence), ())
            if guess:
                guess = guess[: _make_room(space, sequence, len(guess))]
            rows.append(Row(sequence, sequence.num_computed, length + len(guess), guess))
        return rows

    def _choose(self, sequences: list[Sequence], space: CacheSpace, max_tokens: int) -> dict[int, tuple[int, ...]]:
        num_rows = len(sequences)
        step_s = self._pace.decode_s(num_rows)
        if not step_s or self._num_steps >= _PLAIN_STEP:
            self._num_steps = 0
            return {}
        terms = _Terms(num_rows, step_s, *self._pace.draft_cost_s(num_rows))
        is_trial = terms.least() >= 1
        if is_trial:
            self._num_skipped += num_rows
            if self._num_skipped < _TRIAL_TOKENS:
                return {}
            self._num_skipped = 0
        left = min(max_tokens - num_rows, MAX_DRAFTS)
        drafts, wishing = self._look_up(sequences, terms, left, is_trial=is_trial)
        if self._model and wishing and not is_trial:
            left -= sum(map(len, drafts.values()))
            drafts |= self._ask(self._model, wishing, space, terms, left, has_drafts=bool(drafts))
        self._num_steps = self._num_steps + 1 if drafts else 0
        return drafts

    @staticmethod
    def _look_up(
        sequences: list[Sequence], terms: _Terms, left: int, *, is_trial: bool
    ) -> tuple[dict[int, tuple[int, ...]], list[Sequence]]:
        """What the sequences' own tokens suggest, and those sequences of which they suggest nothing."""
        least = terms.least()
        drafts: dict[int, tuple[int, ...]] = {}
        wishing = []
        gain = 0.0  # tokens expected of drafts
        num_drafts = 0
        is_probe = is_trial
        for sequence in sequences:
            record, length = sequence.record, len(sequence.ids)
            if sequence.grammar:
                continue
            wishing.append(sequence)
            if length < record.resume_at:
                continue
            wanted = 1 if is_trial or record.is_paused else _num_wanted(record.chance, least)
            if not wanted:
                record.pause(length)
                continue
            guess = record.lookup.find(sequence.ids, min(wanted, left, sequence.max_ids - length - 1))
            if guess:
                wishing.pop()
                sequence.guesser = record
                drafts[id(sequence)] = guess
                left -= len(guess)
                num_drafts += len(guess)
                gain += _expected(record.chance, len(guess))
                is_probe |= record.is_paused
                if is_trial:
                    break
        if not is_probe and not terms.pays(gain, terms.any_s + terms.each_s * num_drafts):
            drafts.clear()
        return drafts, wishing

    def _ask(
        self,
        model: DraftModel,
        sequences: list[Sequence],
        space: CacheSpace,
        terms: _Terms,
        left: int,
        *,
        has_drafts: bool,
    ) -> dict[int, tuple[int, ...]]:
        """What the draft model suggests for those of which that pays, its own time included."""
        sequences = [each for each in sequences if len(each.ids) >= each.drafted.record.resume_at]
        if not sequences:
            return {}
        pass_s = model.pass_s(len(sequences))
        least = terms.least(pass_s / len(sequences))
        if least >= 1:
            self._num_unasked += terms.num_rows
            if self._num_unasked < _TRIAL_TOKENS:
                return {}
            self._num_unasked, pass_s = 0, 0.0  # measure it again
        wishes: list[_Wish] = []
        gain = 0.0
        is_probe = not pass_s
        for sequence in sequences:
            record, length = sequence.drafted.record, len(sequence.ids)
            wanted = 1 if record.is_paused or not pass_s else _num_wanted(record.chance, least)
            num_more = sequence.max_ids - length - 1
            # To read a long prompt pays only for a long answer.
            if not wanted or model.reading_s(sequence) * terms.num_rows > num_more * terms.step_s / 2:
                record.pause(length)
                continue
            count = _make_room(space, sequence, min(wanted, left, num_more))
            if count > 0:
                wishes.append(_Wish(sequence, count))
                left -= count
                gain += _expected(record.chance, count)
                is_probe |= record.is_paused
        if not wishes:
            return {}
        counts = [wish.num_drafts for wish in wishes]
        cost_s = pass_s * max(counts) + terms.each_s * sum(counts)
        if not is_probe and not terms.pays(gain, cost_s + (0.0 if has_drafts else terms.any_s)):
            return {}
        drafts = {}
        for wish, guess in zip(wishes, model.guess(wishes, terms.step_s / 2), strict=True):
            if guess:
                wish.sequence.guesser = wish.sequence.drafted.record
                drafts[id(wish.sequence)] = guess
        return drafts


def _make_room(space: CacheSpace, sequence: Sequence, num_drafts: int) -> int:
    """For how many drafts, of so many, the sequence's tables have room now."""
    length = len(sequence.ids)
    count = max(0, space.room(sequence, length + num_drafts) - length)
    space.grow(sequence, length + count)
    return count


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
