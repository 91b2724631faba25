"""Reading headers of safetensors files."""

import json
import struct
from pathlib import Path

import pytest

from worker.models.errors import NotServable
from worker.models.weights import digest, read_headers


def write(file: Path, tensors: dict[str, tuple[str, list[int], int]], data: bytes | None = None) -> None:
    """A safetensors file with these tensors: name → dtype, shape, bytes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    entries: dict[str, object] = dict(header)
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + (bytes(at) if data is None else data))


def test_headers_of_shards_in_order(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00002.safetensors", {"a": ("BF16", [2, 3], 12)})
    write(tmp_path / "model-00002-of-00002.safetensors", {"b": ("F32", [], 4)})
    weight_map = {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    first, second = read_headers(tmp_path)
    assert (first.name, first.dtype, first.shape, first.stored_bytes) == ("a", "BF16", (2, 3), 12)
    assert (second.name, second.dtype, second.shape, second.stored_bytes) == ("b", "F32", (), 4)
    for tensor in (first, second):
        assert tensor.file.stat().st_size == tensor.offset + tensor.stored_bytes
    assert [tensor.num_items for tensor in read_headers(tmp_path)] == [6, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty or cut short"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{", "cut short within its header"),
        (b"version https://git-lfs.github.com/spec/v1", "not start with a safetensors header"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not start with a safetensors header"),
        (b'\x0a\x00\x00\x00\x00\x00\x00\x00{"a": 1  }', "not start with a safetensors header"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(NotServable, match=told):
        read_headers(tmp_path)


def test_data_cut_short_is_seen_in_the_header(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": ("F32", [4], 16)}, data=bytes(10))
    with pytest.raises(NotServable, match="a ends 6 bytes after it"):
        read_headers(tmp_path)


def test_digest_sees_names_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write(file, {"a": ("F32", [4], 16)})
    first = digest(tmp_path)
    write(file, {"b": ("F32", [4], 16)})
    assert digest(tmp_path) != first
    write(file, {"a": ("F32", [4], 16)}, data=bytes([0] * 15 + [1]))
    assert digest(tmp_path) != first
    write(file, {"a": ("F32", [4], 16)})
    assert digest(tmp_path) == first
