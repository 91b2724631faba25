"""The headers of safetensors files: what is in them and how large, without reading a weight.

A file starts with eight bytes of little-endian length and a JSON header of that length:
``{name: {"dtype", "shape", "data_offsets": [from, to]}}``. Only headers are read here.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from worker.models.errors import NotServable
from worker.models.files import INDEX, SINGLE, read_json

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|embeddings?)\.weight$")  # looked up, kept
_EXPERT = re.compile(r"\.experts\.")
_SAMPLE_BYTES = 64 << 10
_MAX_HEADER = 100 << 20  # as the format's own library


class TensorHeader(NamedTuple):
    """One tensor as its file describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int
    file: Path = Path()
    offset: int = 0  # of its first byte in the file

    @property
    def num_items(self) -> int:
        """How many numbers it holds."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def is_matrix(tensor: TensorHeader) -> bool:
    """Whether it is the weight of a linear layer, as far as its name and shape tell."""
    return len(tensor.shape) == 2 and not _EMBEDDING.search(tensor.name)


def is_expert(tensor: TensorHeader) -> bool:
    """Whether it is of an expert; transformers joins these while it loads."""
    return bool(_EXPERT.search(tensor.name))


def can_stay(tensor: TensorHeader, dtype: str) -> bool:
    """Whether it may be left in its file until it is packed (`worker.models.mapped`)."""
    is_as_stored = TORCH_NAMES.get(tensor.dtype) == dtype
    return is_as_stored and len(tensor.shape) == 2 and not is_expert(tensor) and hasattr(mmap, "MADV_DONTNEED")


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of the model in `path`."""
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    return [path / name for name in sorted(set(read_json(path / INDEX).get("weight_map", {}).values()))]


def read_headers(path: Path) -> list[TensorHeader]:
    """Every tensor of the model in `path`. Raises NotServable for a damaged file."""
    return [tensor for file in weight_files(path) for tensor in _tensors(file)]


def prefetch(path: Path) -> None:
    """Have the system read the weights into its page cache, as far as it likes to; returns at once."""
    with contextlib.suppress(OSError, NotServable):  # whoever loads it will say what is wrong
        for file in weight_files(path) if hasattr(os, "posix_fadvise") else []:
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def digest(path: Path) -> str:
    """A short hash over all headers and a sample of each file's data, so that it costs no pass over the weights."""
    state = hashlib.sha256()
    for file in weight_files(path):
        size = file.stat().st_size
        state.update(f"{file.name} {size}\n".encode())
        state.update(_header(file))
        with file.open("rb") as stream:
            for place in (size // 3, size // 3 * 2, max(0, size - _SAMPLE_BYTES)):
                stream.seek(place)
                state.update(stream.read(_SAMPLE_BYTES))
    return state.hexdigest()[:16]


def _header(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            (length,) = struct.unpack("<Q", start)
            if length > _MAX_HEADER:
                raise NotServable(f"{file} does not start with a safetensors header; download it again")
            header = stream.read(length)
    except FileNotFoundError as error:
        raise NotServable(f"{file} is missing; download the model again") from error
    except struct.error as error:
        raise NotServable(f"{file} is empty or cut short; download it again") from error
    if len(header) < length:
        raise NotServable(f"{file} is cut short within its header; download it again")
    return header


def _tensors(file: Path) -> Iterator[TensorHeader]:
    header = _header(file)
    first = 8 + len(header)
    size = file.stat().st_size - first
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            if end > size:
                raise NotServable(f"{file} is cut short: {name} ends {end - size} bytes after it; download it again")
            yield TensorHeader(name, entry["dtype"], tuple(entry["shape"]), end - start, file, first + start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotServable(f"{file} does not start with a safetensors header; download it again") from error
