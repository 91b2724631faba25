"""Which query rows meet which keys, cut so that working memory stays bounded. Pure arithmetic on positions."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from worker.engine.block_table import Run


class Part(NamedTuple):
    """Keys of positions [start, stop), in consecutive slots from `slot` on.

    `visible` says which of them each row of the tile sees: all, those up to itself (rows and keys are the same
    positions), or whatever a mask over positions says.
    """

    start: int
    stop: int
    slot: int
    visible: Literal["all", "causal", "mask"]


class Tile(NamedTuple):
    """Query rows of one sequence: packed rows from `row` on, positions [start, stop), and the keys they need."""

    row: int
    start: int
    stop: int
    parts: tuple[Part, ...]


def make_tiles(
    row: int,
    start: int,
    stop: int,
    runs: Iterable[Run],
    *,
    window: int | None,
    max_rows: int,
    max_keys: int | None,
) -> Iterator[Tile]:
    """Cut the queries at positions [start, stop), packed from `row` on, into tiles.

    Args:
        runs: where positions [0, stop) of the sequence are in the cache.
        window: each query sees so many positions, itself included; None: all before it.
        max_rows: bound of a tile.
        max_keys: bound of a part; None: none.
    """
    runs = list(runs)
    for low in range(start, stop, max_rows):
        high = min(low + max_rows, stop)
        first = max(0, low - window + 1) if window else 0
        border = low if high - low > 1 else high  # a single row sees all there is, itself included
        parts = [
            Part(a, b, run.slot + a - run.start, _visible(low, high, a, b, window))
            for run in runs
            for a, b in _cut(max(run.start, first), min(run.stop, high), border, max_keys)
        ]
        yield Tile(row + low - start, low, high, tuple(parts))


def _cut(start: int, stop: int, border: int, max_keys: int | None) -> Iterator[tuple[int, int]]:
    """[start, stop) in pieces of at most `max_keys`, none across `border`: before it, all rows may see every key."""
    while start < stop:
        end = min(stop, start + max_keys) if max_keys else stop
        if start < border:
            end = min(end, border)
        yield start, end
        start = end


def _visible(low: int, high: int, start: int, stop: int, window: int | None) -> Literal["all", "causal", "mask"]:
    if window and start < high - window:  # the last row's window begins after the first key
        return "mask"
    if stop <= low + 1:
        return "all"
    return "causal" if (start, stop) == (low, high) else "mask"
