"""Tensors of which a rank reads its part only."""

import os
from typing import Any

import torch
from torch import Tensor

from worker.models.division import Division, Part
from worker.models.errors import BadWeights
from worker.models.stored import _DTYPES, StoredTensor
from worker.models.weights import TensorHeader


def shared_out(
    division: Division, headers: list[TensorHeader], tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors, opened by `Division.openable`, each as small as the rank has it. `headers` are the whole ones."""
    found = dict(tensors)
    for header in headers:
        part = division.part(header)
        if part is not None and not part.is_run:
            found[header.name] = _PartTensor(tensors[header.name], part, division.share(header))
    return found


class _PartTensor(StoredTensor):
    """Columns, or several runs of rows: `part[...]` reads no more than these, or shows them where they are mapped."""

    def __init__(self, stored: StoredTensor, part: Part, share: TensorHeader) -> None:
        super().__init__(share, stored._fd, stored._note)
        self._whole = stored
        self._part = part

    def __getitem__(self, index: Any) -> Tensor:
        """The part, or a part of it. Raises BadWeights if the file has become shorter."""
        part, whole = self._part, self._whole
        if not part.pieces:
            return torch.zeros(self._header.shape, dtype=_DTYPES[self._header.dtype])[index]
        if type(whole) is StoredTensor:
            return self._read()[index]
        views = [whole[...].narrow(part.dim, start, stop - start) for start, stop in part.pieces]
        return (views[0] if len(views) == 1 else torch.cat(views, part.dim))[index]

    def _read(self) -> Tensor:
        """Into new memory, piece by piece as they lie in the file."""
        share, whole, part = self._header, self._whole._header, self._part
        tensor = torch.empty(share.shape, dtype=_DTYPES[share.dtype])
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        memory, done = memoryview(array), 0
        rows = 1
        for length in whole.shape[: part.dim]:
            rows *= length
        row_bytes = whole.stored_bytes // max(1, rows)
        item_bytes = row_bytes // whole.shape[part.dim]
        for row in range(rows):
            for start, stop in part.pieces:
                size = (stop - start) * item_bytes
                self._fill(memory[done : done + size], whole.offset + row * row_bytes + start * item_bytes)
                done += size
        self._note(whole.stored_bytes)
        return tensor

    def _fill(self, memory: memoryview, offset: int) -> None:
        done = 0
        while done < len(memory):
            count = os.preadv(self._fd, [memory[done:]], offset + done)
            if count == 0:
                raise BadWeights(self._header.file, other=[f"{self._header.name} is cut short"])
            done += count
