"""One step of the engine: which tokens of which sequences are computed, and what came of it."""

from typing import Literal, NamedTuple

from msgspec import Struct

from worker.engine.sequence import Ahead, Sequence, Turn
from worker.protocol import ChoiceLogprob


class Row(NamedTuple):
    """Compute positions [start, stop) of a sequence. Its block tables have room for them.

    The last of these positions may hold drafts: tokens that the sequence does not have yet and that are guessed to
    come next. Their keys and values count only if the tokens sampled before them turn out to be the same.
    """

    sequence: Sequence
    start: int
    stop: int
    drafts: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        """The tokens to compute, drafts included."""
        if self.drafts:
            return [*self.sequence.ids[self.start : self.stop - len(self.drafts)], *self.drafts]
        return self.sequence.ids[self.start : self.stop]

    @property
    def is_sampled(self) -> bool:
        """Whether the sequence's last token is among them, so that a next one is to be sampled."""
        return self.stop - len(self.drafts) == len(self.sequence.ids)


class Transfer(Struct, frozen=True):
    """Move a block's keys and values, of all layers with a full cache or of all with a capped window.

    copy: from device block to device block. spill: from device block to place in host memory. load: back.
    """

    kind: Literal["copy", "spill", "load"]
    is_window: bool
    source: int
    target: int


class StepPlan(Struct, frozen=True):
    """The rows of one step: decode rows first, then prefill chunks. A sequence has at most one.

    The transfers are due before, one after the other, and only once.
    """

    rows: tuple[Row, ...]
    transfers: tuple[Transfer, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return sum([row.stop - row.start for row in self.rows])

    @property
    def num_drafts(self) -> int:
        """Drafts among them."""
        return sum([len(row.drafts) for row in self.rows])

    @property
    def num_decoding(self) -> int:
        """Rows of a single token, drafts apart."""
        return sum([row.stop - row.start == 1 + len(row.drafts) for row in self.rows])

    @property
    def is_decode(self) -> bool:
        """Whether every row is a single token, drafts apart."""
        return self.num_decoding == len(self.rows)

    @property
    def sampled(self) -> list[Row]:
        """The rows that bring tokens, in order."""
        return [row for row in self.rows if row.is_sampled]

    @staticmethod
    def kept(row: Row) -> range:
        """The positions of a row whose logits are wanted: the last token's and each draft's, if it is sampled."""
        return range(row.stop - len(row.drafts) - 1, row.stop) if row.is_sampled else range(0)

    @property
    def turns(self) -> list[Turn]:
        """For each kept position of the rows, in order, the sequence as the sampler must see it there."""
        turns: list[Turn] = []
        for row in self.rows:
            if row.is_sampled:
                turns.append(row.sequence)
                if row.drafts:
                    turns += [Ahead(row.sequence, row.drafts[:count]) for count in range(1, len(row.drafts) + 1)]
        return turns


class Sampled(Struct, frozen=True):
    """The token chosen at one kept position, with log probabilities if its job asked for them."""

    id: int
    logprob: ChoiceLogprob | None = None


def accept(drafts: tuple[int, ...], sampled: list[Sampled]) -> list[Sampled]:
    """What a row brings: its tokens up to and including the first that is not the draft after it.

    The tokens are those that steps without drafts would have brought, because each was chosen after equal tokens, with
    its own position's random number.
    """
    for count, draft in enumerate(drafts):
        if sampled[count].id != draft:
            return sampled[: count + 1]
    return sampled
