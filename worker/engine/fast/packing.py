"""A step's rows as flat lists: the tokens, and where they and their sequences are in the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.engine.block_table import BlockTable
from worker.engine.paged import Span
from worker.engine.plan import Row


@dataclass(frozen=True, slots=True)
class Places:
    """For one kind of layers: the slot of each token, and the runs of each row's sequence."""

    slots: list[int]
    spans: list[Span]


@dataclass(frozen=True, slots=True)
class Packed:
    """The rows' tokens, one row behind the other. `kept` are those whose logits are wanted."""

    ids: list[int]
    positions: list[int]
    kept: list[int]
    full: Places
    window: Places  # of layers whose cache is capped to their window; where none is, the same as `full`


def pack(rows: Sequence[Row], keep: Callable[[Row], range], *, is_capped: bool) -> Packed:
    """Lay the rows behind each other."""
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    firsts: list[int] = []
    for row in rows:
        first = len(ids)
        firsts.append(first)
        ids += row.ids
        positions += range(row.start, row.stop)
        kept += (first + position - row.start for position in keep(row))
    full = _places(rows, firsts, [row.sequence.table for row in rows])
    window = _places(rows, firsts, [row.sequence.window_table for row in rows]) if is_capped else full
    return Packed(ids, positions, kept, full, window)


def _places(rows: Sequence[Row], firsts: list[int], tables: list[BlockTable]) -> Places:
    slots: list[int] = []
    spans: list[Span] = []
    for row, first, table in zip(rows, firsts, tables, strict=True):
        slots += table.slots(row.start, row.stop)
        spans.append(Span(first, row.start, row.stop, tuple(table.runs(0, row.stop))))
    return Places(slots, spans)
