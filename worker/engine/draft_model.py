"""Guessing what comes next by asking a smaller model of the same vocabulary.

The small model is a second runner. Its cache has as many blocks as the large one's, so a sequence's block table is good
for both, and there is no second scheduler. Which blocks hold the small model's keys and values is known by name, as the
prefix index names blocks: what was found in the large model's cache may be missing here, and is then read again. All of
this decides how good the guesses are and nothing else: whatever is guessed is verified.

A guess is drawn as the large model's token will be, with the same random number and the same limits and penalties. So
where the two models agree on the chances, they agree on the token, at any temperature.

A sequence is read only when guesses are wanted of it, in chunks beside its decode steps: prompts are not held up.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from typing import Protocol, cast

import msgspec

from shared import log
from worker.engine.errors import DeviceLost
from worker.engine.pace import Pace
from worker.engine.plan import Row, Sampled, StepPlan
from worker.engine.sequence import Sequence
from worker.models.draft import PASS_TOKENS
from worker.protocol import Sample

_NEAR = 32  # tokens that may be read along with a guess
_FIRST = 32  # tokens of the first chunk, whose time is not known
_NEVER = 1 << 60
_log = log.get(__name__)


class DraftRunner(Protocol):
    """Computes plans: a `worker.engine.runner.TorchRunner` over a small model."""

    vocab_size: int

    def run(self, plan: StepPlan) -> list[Sampled]:
        """See `worker.engine.engine.Runner`."""
        ...


class DraftModel:
    """Guesses for sequences of an engine.

    Args:
        runner: the small model; its cache has the engine's blocks.
        block_tokens: the engine's.
        vocab_size: the engine's; a guess is below it.
        context_limit: tokens that the small model can read.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: DraftRunner,
        *,
        block_tokens: int,
        vocab_size: int,
        context_limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._block_tokens = block_tokens
        self._vocab_size = min(vocab_size, runner.vocab_size)
        self._context_limit = context_limit
        self._clock = clock
        self._pace = Pace()
        self._names: dict[int, bytes] = {}  # of full blocks that the small model has read, by number

    def pass_s(self, num_rows: int) -> float:
        """Seconds for one more guess of so many sequences; 0: not measured."""
        return self._pace.decode_s(num_rows)

    def reading_s(self, sequence: Sequence) -> float:
        """Seconds until it has read the sequence; 0 also where that is not measured."""
        token_s = self._pace.prefill_token_s
        missing = len(sequence.ids) - self._settle(sequence) if token_s else 0
        return token_s * missing if missing > _NEAR else 0.0

    def guess(self, wanted: Sequence_[tuple[Sequence, int]], spare_s: float) -> list[tuple[int, ...]]:
        """Up to so many tokens that may follow each sequence; none for those that it has not read to the end.

        The sequences' tables have room for all guesses. Reading takes about `spare_s` at most.
        """
        try:
            return self._guess(wanted, spare_s)
        except DeviceLost:
            raise
        except Exception as error:  # guesses are a luxury: these sequences go on without
            _log.warning("draft.failed", rows=len(wanted), error=f"{type(error).__name__}: {error}")
            for sequence, _ in wanted:
                sequence.drafted.forget()
                sequence.drafted.record.resume_at = _NEVER
            return [() for _ in wanted]

    def _guess(self, wanted: Sequence_[tuple[Sequence, int]], spare_s: float) -> list[tuple[int, ...]]:
        guesses: list[list[int]] = [[] for _ in wanted]
        far: list[tuple[Sequence, int]] = []
        near: list[tuple[int, int]] = []  # number in `wanted`, first position to read
        for number, (sequence, count) in enumerate(wanted):
            start = self._settle(sequence)
            if count and self._can_read(sequence, start, count):
                if len(sequence.ids) - start > _NEAR:
                    far.append((sequence, start))
                else:
                    near.append((number, start))
        if far:
            self._read(far, spare_s)
        for depth in range(max((wanted[number][1] for number, _ in near), default=0)):
            rows = []
            for number, start in near:
                sequence, count = wanted[number]
                if depth < count:
                    turn = _Turn(sequence, guesses[number], self._sample(sequence))
                    rows.append((number, Row(cast("Sequence", turn), start, len(turn.ids))))
            tokens = self._run([row for _, row in rows])
            for (number, _), token in zip(rows, tokens, strict=True):
                guesses[number].append(token.id)
            near = [(number, len(wanted[number][0].ids) + depth) for number, _ in rows]
        for number, (sequence, _) in enumerate(wanted):
            if guesses[number]:
                sequence.drafted.num_known = len(sequence.ids)
                sequence.drafted.guessed = tuple(guesses[number][:-1])  # the last one was not read
        return [_below(guess, self._vocab_size) for guess in guesses]

    def _settle(self, sequence: Sequence) -> int:
        """The first position to read, by what of the guesses came true and what is in the cache under its name."""
        drafted, ids = sequence.drafted, sequence.ids
        size = self._block_tokens
        known = drafted.num_known
        for token in drafted.guessed:
            if known >= len(ids) or ids[known] != token:
                break
            known += 1
        drafted.guessed = ()
        num_named = min(known // size, len(sequence.chain))
        for index in range(num_named - 1, -1, -1):  # those that became full since
            block, name = sequence.table.block(index), sequence.chain[index]
            if self._names.get(block) == name:
                break
            self._names[block] = name
        if not known:
            for name, block in zip(sequence.chain, sequence.table.blocks, strict=False):
                if self._names.get(block) != name:
                    break
                known += size
        drafted.num_known = min(known, len(ids) - 1)  # the last token is read, to say what comes next
        return drafted.num_known

    def _can_read(self, sequence: Sequence, start: int, count: int) -> bool:
        if len(sequence.ids) + count > self._context_limit or max(sequence.ids[start:]) >= self._runner.vocab_size:
            sequence.drafted.record.resume_at = _NEVER
            return False
        return True

    def _read(self, far: list[tuple[Sequence, int]], spare_s: float) -> None:
        """Read on in sequences of which much is missing, the first of them first."""
        token_s = self._pace.prefill_token_s
        budget = max(1, min(PASS_TOKENS, round(spare_s / token_s))) if token_s else _FIRST
        rows = []
        for sequence, start in far:
            stop = min(len(sequence.ids) - 1, start + budget)
            if stop > start:
                rows.append(Row(sequence, start, stop))
                budget -= stop - start
        self._run(rows)
        for row in rows:
            row.sequence.drafted.num_known = row.stop

    def _run(self, rows: list[Row]) -> list[Sampled]:
        for row in rows:
            for index in range(row.start // self._block_tokens, -(-row.stop // self._block_tokens)):
                self._names.pop(row.sequence.table.block(index), None)
        plan = StepPlan(tuple(rows))
        started = self._clock()
        tokens = self._runner.run(plan)
        seconds = self._clock() - started
        num_decoding = len(rows) if tokens else 0
        self._pace.learn(num_decoding or plan.num_tokens, seconds, num_decoding=num_decoding)
        return tokens

    def _sample(self, sequence: Sequence) -> Sample:
        drafted = sequence.drafted
        if drafted.sample is None:
            bias = {token: value for token, value in sequence.sample.logit_bias.items() if token < self._vocab_size}
            drafted.sample = msgspec.structs.replace(sequence.sample, logprobs=None, logit_bias=bias)
        return drafted.sample


class _Turn:
    """A sequence with the tokens guessed so far, as the small model sees it: what `Row` and the sampler ask for."""

    def __init__(self, sequence: Sequence, guesses: list[int], sample: Sample) -> None:
        self.key, self.choice, self.sample = sequence.key, sequence.choice, sample
        self.ids = [*sequence.ids, *guesses] if guesses else sequence.ids
        self.table = self.window_table = sequence.table
        self.num_output = sequence.num_output + len(guesses)
        self.grammar = None
        self._sequence = sequence
        self._guesses = tuple(guesses)

    def token_counts(self) -> dict[int, int]:
        """As `Sequence.token_counts`, the guesses included."""
        counts = dict(self._sequence.token_counts())
        for token in self._guesses:
            counts[token] = counts.get(token, 0) + 1
        return counts


def _below(guess: list[int], vocab_size: int) -> tuple[int, ...]:
    """The guess up to the first token that the large model does not have."""
    stop = next((index for index, token in enumerate(guess) if token >= vocab_size), len(guess))
    return tuple(guess[:stop])
