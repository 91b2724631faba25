"""The inputs of decode steps in memory that never moves, so that a recorded step can be replayed on new ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from worker.engine.block_table import BlockTable
from worker.engine.cuda.capture import Recorder
from worker.engine.cuda.choosing import NUM_SETTINGS, settings_of
from worker.engine.cuda.step import Group, Paging, StepInputs, length_of, slot_of
from worker.engine.sequence import Sequence as Sequence_

FROM_HOST = -1


@dataclass(frozen=True, slots=True)
class Decoding:
    """A row that computes one token of a sequence, at `position`.

    The token is `id`, or, where `carried` is not FROM_HOST, the one that the last step chose for its row `carried`.
    """

    sequence: Sequence_
    position: int
    id: int
    carried: int = FROM_HOST

    @property
    def is_random(self) -> bool:
        """Whether its next token is drawn."""
        return self.sequence.sample.temperature > 0

    @property
    def settings(self) -> tuple[float, float, float, float, float]:
        """How its next token is to be chosen."""
        sequence = self.sequence
        return settings_of(sequence.sample, sequence.choice, self.position + 1 - sequence.num_prompt)


class _Places:
    """Of one kind of layers, on the host: a view for each column of the staging memory."""

    def __init__(self, columns: NDArray[np.int32], max_rows: int, trash_page: int, page_tokens: int) -> None:
        self.slots, self.lengths = columns[:max_rows], columns[max_rows : 2 * max_rows]
        self.offsets = columns[2 * max_rows : 3 * max_rows + 1]
        self.tables = columns[3 * max_rows + 1 :].reshape(max_rows, -1)
        self._page_tokens = page_tokens
        self._trash_page = trash_page
        self._written: list[tuple[list[int] | None, int]] = [(None, 0)] * max_rows

    def put(self, row: int, table: BlockTable, position: int) -> None:
        self.slots[row] = slot_of(table, position, self._page_tokens)
        self.lengths[row] = length_of(table, position + 1, self._page_tokens)
        # While blocks are only added, what was written stays right. Else the table has another list of them.
        known, count = self._written[row]
        first = count if known is table.blocks else 0
        if first < len(table.blocks):
            self.tables[row, first : len(table.blocks)] = table.blocks[first:]
        self._written[row] = table.blocks, len(table.blocks)

    def fill(self, first: int, stop: int) -> None:
        """Rows that only fill up the batch: one key, on a page that is nobody's."""
        self.slots[first:stop] = self._trash_page * self._page_tokens
        self.lengths[first:stop] = 1
        self.tables[first:stop, 0] = self._trash_page
        self._written[first:stop] = [(None, 0)] * (stop - first)

    def close(self, stop: int) -> None:
        self.offsets[0] = 0
        np.cumsum(self.lengths[:stop], out=self.offsets[1 : stop + 1])


class _Staging:
    """Host memory for one step's inputs."""

    def __init__(self, recorder: Recorder, sizes: "Sizes") -> None:
        rows = sizes.max_rows
        self.numbers = recorder.host(sizes.num_numbers, torch.int32)
        self.settings = recorder.host(NUM_SETTINGS * rows, torch.float64).view(NUM_SETTINGS, rows)
        columns: NDArray[np.int32] = self.numbers.numpy()
        self.ids, self.carried, self.positions = (columns[n * rows : (n + 1) * rows] for n in range(3))
        self.places = []
        first = 3 * rows
        for pages, trash_page in sizes.kinds:
            size = sizes.kind_numbers(pages)
            self.places.append(_Places(columns[first : first + size], rows, trash_page, sizes.page_tokens))
            first += size


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows at most; for each kind of layers, pages of a row at most and the page that is nobody's."""

    max_rows: int
    page_tokens: int
    kinds: tuple[tuple[int, int], ...]

    def kind_numbers(self, pages: int) -> int:
        """Numbers of a kind: slots, lengths, their sums, tables."""
        return 3 * self.max_rows + 1 + self.max_rows * pages

    @property
    def num_numbers(self) -> int:
        """All of them."""
        return 3 * self.max_rows + sum(self.kind_numbers(pages) for pages, _ in self.kinds)


class StaticInputs:
    """Inputs of up to `sizes.max_rows` decode rows, on the device, and how they get there.

    Two stagings take turns: one is written while the other may still be on its way.
    """

    def __init__(self, recorder: Recorder, sizes: Sizes, device: torch.device) -> None:
        self._sizes = sizes
        self._stagings = [_Staging(recorder, sizes), _Staging(recorder, sizes)]
        rows = sizes.max_rows
        self._numbers = torch.zeros(sizes.num_numbers, dtype=torch.int32, device=device)
        self.settings = torch.zeros(NUM_SETTINGS, rows, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.int32, device=device)  # what the last step chose
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)

    def put(self, rows: Sequence[Decoding], size: int) -> None:
        """Send the rows to the device, filled up to `size` of them."""
        staging = self._stagings[0]
        self._stagings.reverse()
        count = len(rows)
        staging.ids[:count] = [row.id for row in rows]
        staging.carried[:count] = [row.carried for row in rows]
        staging.positions[:count] = [row.position for row in rows]
        staging.ids[count:size] = 0
        staging.carried[count:size] = FROM_HOST
        staging.positions[count:size] = 0
        for number, places in enumerate(staging.places):
            for index, row in enumerate(rows):
                places.put(index, row.sequence.window_table if number else row.sequence.table, row.position)
            places.fill(count, size)
            places.close(size)
        if any(row.is_random for row in rows):
            staging.settings[:, :count] = torch.tensor([row.settings for row in rows], dtype=torch.float64).T
            staging.settings[:, count:size] = 0
            self.settings.copy_(staging.settings, non_blocking=True)
        self._numbers.copy_(staging.numbers, non_blocking=True)

    def inputs(self, size: int) -> StepInputs:
        """The first `size` rows; tokens are looked up where they are carried over."""
        rows = self._sizes.max_rows
        ids, carried, positions = (self._numbers[n * rows : n * rows + size] for n in range(3))
        carried_ids = self.tokens[carried.clamp(min=0).long()]
        pagings = []
        first = 3 * rows
        for pages, _ in self._sizes.kinds:
            pagings.append(self._paging(first, size, pages))
            first += self._sizes.kind_numbers(pages)
        return StepInputs(
            ids=torch.where(carried >= 0, carried_ids, ids),
            positions=positions,
            kept=None,
            full=pagings[0],
            window=pagings[-1],
        )

    def _paging(self, first: int, size: int, pages: int) -> Paging:
        rows = self._sizes.max_rows
        lengths = self._numbers[first + rows : first + rows + size]
        offsets = self._numbers[first + 2 * rows : first + 2 * rows + size + 1]
        tables = self._numbers[first + 3 * rows + 1 :][: rows * pages].view(rows, pages)[:size]
        max_length = pages * self._sizes.page_tokens
        group = Group(
            first=0,
            num_tokens=size,
            starts=self._starts[: size + 1],
            max_tokens=1,
            tables=tables,
            lengths=lengths,
            offsets=offsets,
            max_length=max_length,
            total_length=size * max_length,
        )
        return Paging(self._numbers[first : first + size], (group,))
