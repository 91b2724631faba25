"""Products with bfloat16 weights in float32, for processors without instructions for the former.

There torch multiplies bfloat16 at a fraction of the speed of float32, so that it pays to widen a weight each time. Sums
are as wide either way; only what comes out is rounded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PART_ITEMS = 1 << 22  # of a weight, widened at a time


class WideProducts(TorchFunctionMode):
    """Within the block, `F.linear` of bfloat16 on a processor without such instructions is computed in float32."""

    def __init__(self) -> None:
        super().__init__()
        self._is_wanted = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._wide = torch.empty(0)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch for each of its functions."""
        if func is F.linear and self._is_wanted and _is_narrow(args):
            return self._multiply(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _multiply(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x, (outputs, inputs) = input.float(), weight.shape
        num_rows = max(1, _PART_ITEMS // inputs)
        if self._wide.numel() < num_rows * inputs:
            self._wide = torch.empty(num_rows * inputs)
        out = torch.empty(*x.shape[:-1], outputs)
        for first in range(0, outputs, num_rows):
            part = weight[first : first + num_rows]
            wide = self._wide[: part.numel()].view(part.shape).copy_(part)
            out[..., first : first + num_rows] = F.linear(x, wide)
        return (out if bias is None else out + bias.float()).to(input.dtype)


def _is_narrow(args: tuple[Any, ...]) -> bool:
    return len(args) > 1 and all(one.dtype == torch.bfloat16 and one.device.type == "cpu" for one in args[:2])
