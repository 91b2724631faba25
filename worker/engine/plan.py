"""One step of the engine: which tokens of which sequences are computed, and what came of it."""

from dataclasses import dataclass

from worker.engine.sequence import Sequence
from worker.protocol import ChoiceLogprob


@dataclass(frozen=True, slots=True)
class Row:
    """Compute positions [start, stop) of a sequence. Its block table has room for them."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def is_sampled(self) -> bool:
        """Whether the sequence's last token is among them, so that a next one is to be sampled."""
        return self.stop == len(self.sequence.ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one step: decode rows first, then prefill chunks. A sequence has at most one."""

    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(row.stop - row.start for row in self.rows)

    @property
    def is_decode(self) -> bool:
        """Whether every row is a single token."""
        return self.num_tokens == len(self.rows)

    @property
    def sampled(self) -> list[Row]:
        """The rows that bring a token, in order."""
        return [row for row in self.rows if row.is_sampled]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen for a row, with log probabilities if its job asked for them."""

    id: int
    logprob: ChoiceLogprob | None = None
