"""A step's rows as tensors: the tokens, and where they and their sequences are in the cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.block_table import BlockTable
from worker.engine.plan import Row

_ALIGNED = 4  # numbers: columns begin at multiples of 16 bytes, so that kernels are compiled once


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one kind, either of a single token each or of several: packed tokens from `first` on.

    A table begins with the first page that its sequence still holds, and lengths count from there: attention knows
    only distances, so pages that a window has left behind need no place in it.
    """

    first: int
    num_tokens: int
    starts: Tensor  # int32 [rows + 1], the first token of each row, counted from the group's, and their number
    max_tokens: int  # of a row
    tables: Tensor  # int32 [rows, pages]
    lengths: Tensor  # int32 [rows], keys up to and with the row's last token
    offsets: Tensor  # int32 [rows + 1], running sums of the lengths
    max_length: int
    total_length: int

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self.lengths)

    @property
    def is_single(self) -> bool:
        """Whether every row is one token."""
        return self.max_tokens == 1


@dataclass(frozen=True, slots=True)
class Paging:
    """For one kind of layers: where each token's key and value go, int32 [tokens], and the rows to attend."""

    slots: Tensor
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Packed tokens, one row behind the other."""

    ids: Tensor  # int32 [tokens]
    positions: Tensor  # int32 [tokens]
    kept: Tensor | None  # int32 [kept], tokens whose logits are wanted; None: of all
    full: Paging
    window: Paging  # of layers whose cache is capped to their window; where none is, the same as `full`

    def paging(self, is_window: bool) -> Paging:
        """Of that kind of layers."""
        return self.window if is_window else self.full


def pack_step(
    rows: Sequence[Row], keep: Callable[[Row], range], *, is_capped: bool, page_tokens: int, device: torch.device
) -> StepInputs:
    """Lay the rows behind each other, in one copy to the device."""
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    for row in rows:
        kept += (len(ids) + position - row.start for position in keep(row))
        ids += row.ids
        positions += range(row.start, row.stop)
    num_single = next((index for index, row in enumerate(rows) if row.stop - row.start > 1), len(rows))
    kinds = [rows[:num_single], rows[num_single:]]
    full = _Places([(kind, [row.sequence.table for row in kind]) for kind in kinds if kind], page_tokens)
    columns = [ids, positions, kept, *full.columns()]
    if is_capped:
        window = _Places([(kind, [row.sequence.window_table for row in kind]) for kind in kinds if kind], page_tokens)
        columns += window.columns()
    parts = iter(send(columns, device))
    id_tensor, position_tensor, kept_tensor = next(parts), next(parts), next(parts)
    full_paging = full.paging(parts)
    return StepInputs(
        ids=id_tensor,
        positions=position_tensor,
        kept=None if len(kept) == len(ids) else kept_tensor,
        full=full_paging,
        window=window.paging(parts) if is_capped else full_paging,
    )


def slot_of(table: BlockTable, position: int, page_tokens: int) -> int:
    """Where a position's key and value go."""
    return table.block(position // page_tokens) * page_tokens + position % page_tokens


def length_of(table: BlockTable, stop: int, page_tokens: int) -> int:
    """Keys of positions before `stop` from the table's first page on."""
    return stop - table.num_dropped * page_tokens


def running_sums(numbers: Sequence[int]) -> list[int]:
    """0, and the sum up to each number."""
    sums = [0]
    for number in numbers:
        sums.append(sums[-1] + number)
    return sums


class _Places:
    """A `Paging` as lists of numbers."""

    def __init__(self, kinds: list[tuple[Sequence[Row], list[BlockTable]]], page_tokens: int) -> None:
        self._slots: list[int] = []
        self._sizes: list[list[int]] = []
        self._lengths: list[list[int]] = []
        self._tables: list[list[list[int]]] = []
        for rows, tables in kinds:
            for row, table in zip(rows, tables, strict=True):
                self._slots += (slot_of(table, position, page_tokens) for position in range(row.start, row.stop))
            lengths = [length_of(table, row.stop, page_tokens) for row, table in zip(rows, tables, strict=True)]
            self._lengths.append(lengths)
            self._sizes.append([row.stop - row.start for row in rows])
            self._tables.append(
                [table.blocks[: -(-length // page_tokens)] for table, length in zip(tables, lengths, strict=True)]
            )

    def columns(self) -> list[list[int]]:
        """What the device must know."""
        columns = [self._slots]
        for sizes, lengths, tables in zip(self._sizes, self._lengths, self._tables, strict=True):
            width = max(map(len, tables))
            flat = [page for table in tables for page in (*table, *[0] * (width - len(table)))]
            columns += [running_sums(sizes), flat, lengths, running_sums(lengths)]
        return columns

    def paging(self, parts: Iterator[Tensor]) -> Paging:
        """The same with these tensors, which are the columns."""
        slots = next(parts)
        first = 0
        groups = []
        for sizes, lengths in zip(self._sizes, self._lengths, strict=True):
            starts, tables, length_tensor, offsets = next(parts), next(parts), next(parts), next(parts)
            group = Group(
                first=first,
                num_tokens=sum(sizes),
                starts=starts,
                max_tokens=max(sizes),
                tables=tables.view(len(sizes), -1),
                lengths=length_tensor,
                offsets=offsets,
                max_length=max(lengths),
                total_length=sum(lengths),
            )
            groups.append(group)
            first += group.num_tokens
        return Paging(slots, tuple(groups))


def send(columns: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Each list as an int32 tensor, all in one copy."""
    flat: list[int] = []
    places = []
    for column in columns:
        places.append((len(flat), len(column)))
        flat += column
        flat += [0] * (-len(column) % _ALIGNED)
    numbers = torch.tensor(flat, dtype=torch.int32)
    if device.type == "cuda":  # from pinned memory the copy is in the order of the stream and nobody waits for it
        numbers = numbers.pin_memory()
    numbers = numbers.to(device, non_blocking=True)
    return [numbers.narrow(0, first, length) for first, length in places]
