"""A linear layer's weight in the native library's own layout."""

import ctypes
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from worker.engine.native import library
from worker.engine.pages import LATER

Kind = Literal["float32", "bfloat16", "int8", "int4"]
_NUMBERS: dict[Kind, int] = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
_STEP: dict[Kind, int] = {"float32": 1, "bfloat16": 2, "int8": 2, "int4": 32}  # inputs must be a multiple of it
_DTYPES = (torch.float32, torch.bfloat16)


def can_pack(kind: Kind, depth: int) -> bool:
    """Whether weights with so many inputs can be of this kind."""
    return depth % _STEP[kind] == 0


class PackedMatrix:
    """A packed weight [columns (outputs), depth (inputs)] with its bias.

    float32 and bfloat16 keep the numbers as they are. int8 has one scale for each output, int4 one for each 32 inputs
    of an output; both quantise the activations on the way, row by row.

    Args:
        weight: [outputs, inputs], float32 or bfloat16, on the CPU; not kept. Several are stacked as they are packed.
        bias: [outputs] or None.
    """

    def __init__(self, weight: Tensor | Sequence[Tensor], bias: Tensor | None, kind: Kind) -> None:
        weights = [one.detach().contiguous() for one in ([weight] if isinstance(weight, Tensor) else weight)]
        dtype, self.depth = weights[0].dtype, weights[0].shape[1]
        self.columns = sum(len(one) for one in weights)
        assert dtype in _DTYPES and can_pack(kind, self.depth), (dtype, self.depth, kind)
        assert all(one.dtype == dtype and one.shape[1] == self.depth for one in weights), [one.shape for one in weights]
        self._library = library.load()
        self.kind: Kind = kind
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self.struct = library.Matrix(columns=self.columns, depth=self.depth, kind=_NUMBERS[kind])
        this = ctypes.byref(self.struct)
        self._data = torch.empty(self._library.plexus_packed_bytes(this), dtype=torch.uint8)
        self.struct.data = self._data.data_ptr()
        LATER.fill_small(self._data.data_ptr(), self._data.nbytes)
        self._scales: Tensor | None = None
        if kind == "int8":
            self._scales = torch.empty(self._library.plexus_padded_columns(this))
            self.struct.scales = self._scales.data_ptr()
        if self._bias is not None:
            self.struct.bias = self._bias.data_ptr()
        parts = (library.Part * len(weights))(*[library.Part(one.data_ptr(), len(one)) for one in weights])
        self._library.plexus_pack(this, parts, dtype == torch.bfloat16, torch.get_num_threads())

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(held.nbytes for held in (self._data, self._scales, self._bias) if held is not None)

    def multiply(self, x: Tensor) -> Tensor:
        """x [..., inputs], float32 or bfloat16, to [..., outputs] of its type."""
        assert x.dtype in _DTYPES and x.shape[-1] == self.depth, (x.dtype, x.shape)
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.columns)
        self._library.plexus_linear(
            ctypes.byref(self.struct),
            x.data_ptr(),
            x.numel() // self.depth,
            x.dtype == torch.bfloat16,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def rows(self, numbers: Tensor) -> Tensor:
        """These rows of the weight, unpacked, [len(numbers), inputs], float32."""
        numbers = numbers.to(torch.int64).contiguous()
        out = torch.empty(len(numbers), self.depth)
        self._library.plexus_unpack_rows(ctypes.byref(self.struct), numbers.data_ptr(), len(numbers), out.data_ptr())
        return out
