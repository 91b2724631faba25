"""The whole model as the first rank's engine sees it: what it is told, all ranks do."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.engine.errors import GroupLost, OutOfMemory
from worker.engine.parallel.collectives import Collectives
from worker.engine.parallel.group import Group
from worker.engine.parallel.messages import Make, Move, Run
from worker.engine.parallel.share import Share
from worker.engine.parallel.steps import send_rows
from worker.engine.plan import Row, Transfer
from worker.engine.prepared import Computes


class SharedModel:
    """All shares with their caches; a group has one at a time.

    Args:
        group: the other ranks, each with its share packed.
        share: this rank's.
        size: of the caches.
        vocab_size: of the whole model.
    """

    def __init__(self, group: Group, share: Share, size: Make, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._group = group
        self._collectives: Collectives = share.collectives
        self._is_capped = bool(size.num_window_blocks)
        group.send(size)
        self._own: Computes = share.make(size)
        group.answers()

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], keep: Callable[[Row], range]) -> Tensor:
        """Compute the rows' tokens on all ranks.

        Returns:
            The logits of the positions that `keep` names for each row, [positions, vocabulary].

        Raises:
            GroupLost: the ranks cannot go on.
            Exception: whatever goes wrong on one of them; all can go on.
        """
        collectives = self._collectives
        collectives.reserve(sum(row.stop - row.start for row in rows), sum(len(keep(row)) for row in rows))
        self._group.send(Run(send_rows(rows, keep, is_capped=self._is_capped)))
        try:
            logits = collectives.run(lambda: self._own.forward(rows, keep))
        except GroupLost:
            raise
        except Exception as error:  # perhaps only for what came from a rank that had no room
            if isinstance(failure := self._group.ask(), OutOfMemory):
                raise failure from error
            raise
        if collectives.is_poisoned and (failure := self._group.ask()) is not None:
            raise failure
        return logits

    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks of all caches."""
        self._group.send(Move([(one.kind, one.is_window, one.source, one.target) for one in transfers]))
        self._own.transfer(transfers)
