"""A repository's model without its weights: small files as they are, and of the weights the headers.

The headers stand in sparse files of the weights' true size, so that everything that plans from a directory reads a
skeleton as it would the model. Fetched by byte ranges; a few hundred kilobytes for a model of any size.
"""

import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from worker.models.errors import NotServable
from worker.models.files import CONFIG, INDEX, choose, read_json

_SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def make_skeleton(
    source: str, revision: str, folder: Path, *, endpoint: str = "", token: str | bool | None = None
) -> Path:
    """The skeleton of a repository at a revision, in a directory of `folder` named after its commit.

    Raises NotServable, and whatever huggingface_hub raises.
    """
    api = HfApi(endpoint=endpoint or None, token=token)
    info = api.model_info(source, revision=revision or None, files_metadata=True)
    path = folder / source.replace("/", "--") / str(info.sha)
    if (path / CONFIG).is_file():
        return path
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
    names = choose(sizes, source)
    path.mkdir(parents=True, exist_ok=True)
    commit = str(info.sha)
    for name in [name for name in (*_SMALL, INDEX) if name in sizes and name != CONFIG]:
        _copy(Path(api.hf_hub_download(source, name, revision=commit)), path / name)
    for name in _weights(names, path):
        found = api.parse_safetensors_file_metadata(source, name, revision=commit)
        tensors = ((key, one.dtype, one.shape, one.data_offsets) for key, one in found.tensors.items())
        write_headers(path / name, tensors, sizes[name])
    _copy(Path(api.hf_hub_download(source, CONFIG, revision=commit)), path / CONFIG)  # last: now it is whole
    return path


def write_headers(file: Path, tensors: Iterable[tuple[str, str, Any, Any]], size: int) -> None:
    """A sparse safetensors file of `size` bytes with these tensors: name, dtype, shape, offsets."""
    entries = {name: {"dtype": dtype, "shape": shape, "data_offsets": at} for name, dtype, shape, at in tensors}
    text = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
    data = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    os.truncate(file, max(size, 8 + len(text) + data))


def _weights(names: Iterable[str], path: Path) -> list[str]:
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if (path / INDEX).is_file() and len(files) != 1:
        shards = set(read_json(path / INDEX).get("weight_map", {}).values())
        if lost := sorted(shards.difference(files)):
            raise NotServable(f"its index names shards that are not there: {', '.join(lost[:3])}")
        files = sorted(shards)
    return files


def _copy(source: Path, target: Path) -> None:
    partial = target.with_suffix(".new")
    partial.write_bytes(source.read_bytes())
    partial.replace(target)
