"""Tensors where they lie in their files, each read once, into memory of its own, by whichever thread asks for it."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.models.errors import BadWeights, NotServable
from worker.models.weights import TensorHeader

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_READ_BYTES = 64 << 20  # at once, so that progress shows within a large tensor


class StoredTensor:
    """Stands for a tensor that is still in its file: `stored[...]` reads it."""

    def __init__(self, header: TensorHeader, fd: int, note: Callable[[int], None]) -> None:
        self._header = header
        self._fd = fd
        self._note = note

    def __getitem__(self, index: Any) -> Tensor:
        """The tensor, or a part of it, in new memory. Raises BadWeights if the file has become shorter."""
        header = self._header
        tensor = torch.empty(header.shape, dtype=_DTYPES[header.dtype])
        if header.stored_bytes:
            array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            self._read_into(memoryview(array))
        return tensor[index]

    def _read_into(self, memory: memoryview) -> None:
        header, done = self._header, 0
        while done < len(memory):
            count = os.preadv(self._fd, [memory[done : done + _READ_BYTES]], header.offset + done)
            if count == 0:
                raise BadWeights(header.file, other=[f"{header.name} is cut short"])
            done += count
            self._note(count)

    def get_shape(self) -> list[int]:
        """As safetensors' own slices have it."""
        return list(self._header.shape)

    def get_dtype(self) -> str:
        """As safetensors' own slices have it: BF16, F32 …"""
        return self._header.dtype


@contextmanager
def opened(
    tensors: Iterable[TensorHeader], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[dict[str, StoredTensor]]:
    """The tensors by name, readable from several threads as long as the block lasts.

    `progress` gets bytes read and bytes in all, from one thread at a time. Raises NotServable for a type of number that
    torch does not have, BadWeights for a tensor whose size contradicts its shape.
    """
    tensors = list(tensors)
    _check(tensors)
    total, done, lock = sum(tensor.stored_bytes for tensor in tensors), 0, threading.Lock()

    def note(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for file in dict.fromkeys(tensor.file for tensor in tensors):
            files[file] = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            stack.callback(os.close, files[file])
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(files[file], 0, 0, os.POSIX_FADV_WILLNEED)
        yield {tensor.name: StoredTensor(tensor, files[tensor.file], note) for tensor in tensors}


def _check(tensors: list[TensorHeader]) -> None:
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise NotServable(f"{tensor.file} holds {tensor.name} as {tensor.dtype}, which is not supported")
        if math.prod(tensor.shape) * _DTYPES[tensor.dtype].itemsize != tensor.stored_bytes:
            raise BadWeights(tensor.file, other=[f"{tensor.name} has another size than its shape says"])
