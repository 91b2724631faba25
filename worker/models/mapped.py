"""Weights left in their files while a model is loaded, for loads that bring them into another form.

A matrix that is to be packed is read layer by layer, by whoever packs it, from a mapping of its file: it never stands
in memory of its own. What was read is given back to the system after every layer. When all is packed, what is left of
the mappings is copied, so that nothing depends on the files any more.

Matrices that transformers puts together while loading, such as those of experts, are in memory whole until then.
"""

import mmap
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from worker.models.stored import StoredTensor
from worker.models.weights import TORCH_NAMES, TensorHeader, can_stay


class Mapped:
    """The files of one model, as far as they are mapped."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[mmap.mmap, int]] = {}  # and the address of the first byte
        self._hooks: list[Any] = []
        self._note: Callable[[int], None] = lambda count: None
        self._handed_out: list[int] = []  # bytes of each tensor that was looked up
        self._unread: dict[int, int] = {}  # bytes of each of the model's tensors, by its address, until it is packed

    def leave(
        self, headers: Iterable[TensorHeader], tensors: dict[str, StoredTensor], dtype: torch.dtype
    ) -> dict[str, StoredTensor]:
        """The tensors, with those that can stay in their files replaced."""
        name = str(dtype).removeprefix("torch.")
        found = dict(tensors)
        for header in headers:
            if can_stay(header, name) and header.num_items and header.offset % dtype.itemsize == 0:
                self._map(header.file)
                self._note = tensors[header.name]._note
                found[header.name] = _MappedTensor(tensors[header.name], self)
        return found

    def watch(self, model: nn.Module) -> None:
        """Give back what each layer has read, as long as the model is not packed; see `of`."""
        for module in model.modules():
            if isinstance(module, nn.ModuleList):
                self._hooks += [layer.register_forward_hook(self._on_forward) for layer in module]
        self._unread = {one.data_ptr(): one.nbytes for one in model.parameters() if self.owns(one)}
        self._note(max(0, sum(self._handed_out) - sum(self._unread.values())))  # what was joined is in memory
        _MAPPED[model] = self

    def note(self, module: nn.Module) -> None:
        """These weights were read."""
        for tensor in module.parameters(recurse=False):
            if num_bytes := self._unread.pop(tensor.data_ptr(), 0):
                self._note(num_bytes)

    def forget(self) -> None:
        """What was read of the files is given back to the system, which may still have it in its cache."""
        for mapping, _ in self._files.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    def end(self, model: nn.Module) -> None:
        """What the model still has in the files gets memory of its own."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for tensor in model.parameters():
            if tensor.device.type == "cpu" and self.owns(tensor):
                tensor.data = tensor.data.clone()
        self._note(sum(self._unread.values()))
        self._unread.clear()
        self.forget()
        self._files.clear()  # the last tensor that looks into it ends a mapping

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in a mapped file."""
        address = tensor.data_ptr()
        return any(first <= address < first + len(mapping) for mapping, first in self._files.values())

    def _on_forward(self, *_: object) -> None:
        self.forget()

    def view(self, header: TensorHeader) -> Tensor:
        """A tensor where it lies. It must not be written to."""
        mapping, _ = self._files[header.file]
        dtype = getattr(torch, TORCH_NAMES[header.dtype])
        return _read_only(mapping, dtype, header.num_items, header.offset).view(header.shape)

    def _map(self, file: Path) -> None:
        if file not in self._files:
            with file.open("rb") as stream:
                mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._files[file] = mapping, _read_only(mapping, torch.uint8, 1, 0).data_ptr()


class _MappedTensor(StoredTensor):
    """A tensor that stays where it is: `stored[...]` is a view into the file, made then: transformers keeps these."""

    def __init__(self, stored: StoredTensor, mapped: Mapped) -> None:
        super().__init__(stored._header, stored._fd, stored._note)
        self._mapped = mapped

    def __getitem__(self, index: Any) -> Tensor:
        """The tensor, or a part of it."""
        self._mapped._handed_out.append(self._header.stored_bytes)
        return self._mapped.view(self._header)[index]


_MAPPED: "WeakKeyDictionary[nn.Module, Mapped]" = WeakKeyDictionary()


def of(model: nn.Module) -> Mapped | None:
    """What of a model's weights is still in its files."""
    return _MAPPED.get(model)


def settled(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: a copy if it is in a file that is mapped, else itself."""
    if tensor.device.type != "cpu" or not any(mapped.owns(tensor) for mapped in list(_MAPPED.values())):
        return tensor
    return tensor.detach().clone()


def releasing(model: nn.Module, release: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    """`release`, and what was read of files is given back with each module."""
    mapped = of(model)
    if mapped is None:
        return release

    def release_both(module: nn.Module) -> None:
        mapped.note(module)
        release(module)
        mapped.forget()

    return release_both


def _read_only(mapping: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset)
