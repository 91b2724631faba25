"""A step's rows as they travel from the first rank to the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from worker.engine.block_table import BlockTable, Run
from worker.engine.parallel.messages import Places, SentRow
from worker.engine.plan import Row


def send_rows(rows: Sequence[Row], keep: Callable[[Row], range], *, is_capped: bool) -> list[SentRow]:
    """What other ranks must know of these rows."""
    sent = []
    for row in rows:
        kept, sequence = keep(row), row.sequence
        window = _send_places(sequence.window_table, row.stop) if is_capped else None
        places = _send_places(sequence.table, row.stop)
        sent.append(SentRow(row.ids, row.start, row.stop, (kept.start, kept.stop), places, window))
    return sent


def receive_rows(sent: Sequence[SentRow], block_tokens: int) -> list[Row]:
    """Rows enough like the first rank's to compute them; `kept` tells which logits are wanted."""
    rows = []
    for one in sent:
        table = _receive_places(one.places, block_tokens)
        window = table if one.window is None else _receive_places(one.window, block_tokens)
        rows.append(_Received(one.ids, one.start, one.stop, range(*one.kept), _Sequence(table, window)))
    return cast(list[Row], rows)


def kept(row: Row) -> range:
    """Of a row that was received."""
    return cast(_Received, row).kept


@dataclass(frozen=True, slots=True)
class _Sequence:
    table: BlockTable
    window_table: BlockTable


@dataclass(frozen=True, slots=True)
class _Received:
    ids: list[int]
    start: int
    stop: int
    kept: range
    sequence: _Sequence


def _send_places(table: BlockTable, stop: int) -> Places:
    return Places(table.num_dropped, [number for run in table.runs(0, stop) for number in run])


def _receive_places(places: Places, block_tokens: int) -> BlockTable:
    numbers = iter(places.runs)
    runs = [Run(start, stop, slot) for start, stop, slot in zip(numbers, numbers, numbers, strict=True)]
    return BlockTable.of(block_tokens, places.num_dropped, runs)
