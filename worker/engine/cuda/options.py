"""Which pieces of the CUDA path may be used. Each can be switched off, to compare any two."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.cuda.attention import WAYS

PAGE_TOKENS = 256
"""Tokens of a block: FlashAttention reads pages of a multiple of this. Prefixes are shared in part, by copying."""


@dataclass(frozen=True, slots=True)
class CudaChoice:
    """From a rank's options.

    Args:
        path: "fast" takes transformers' modules only for models that it does not know.
        attention: ways of attention that may be used; `gather` always may.
        has_triton: Triton's kernels for the small operations and for choosing tokens.
        has_graphs: decode steps are recorded and replayed.
        runs_ahead: the next decode step is started before the tokens of the last are read.
        quantization: of the linear layers' weights: "" or fp8. Others are for CPUs, and left out with a log line.
    """

    path: str = "fast"
    attention: tuple[str, ...] = WAYS
    has_triton: bool = True
    has_graphs: bool = True
    runs_ahead: bool = True
    quantization: str = ""

    @staticmethod
    def from_options(options: Mapping[str, Any], quantization: str) -> "CudaChoice":
        """From options (path, attention, triton, graphs, ahead, quantization) and the model's record."""
        ways = options.get("attention", WAYS)
        ways = tuple([ways] if isinstance(ways, str) else ways)
        if strange := set(ways) - set(WAYS):
            raise ValueError(f"attention must be of {', '.join(WAYS)}, not {', '.join(sorted(strange))}")
        path = str(options.get("path", "fast"))
        if path not in ("fast", "generic"):
            raise ValueError(f"path must be fast or generic, not {path!r}")
        has_triton = bool(options.get("triton", True))
        return CudaChoice(
            path=path,
            attention=ways if has_triton else tuple(way for way in ways if way != "triton"),
            has_triton=has_triton,
            has_graphs=bool(options.get("graphs", True)),
            runs_ahead=bool(options.get("ahead", True)),
            quantization=str(options.get("quantization", quantization) or ""),
        )
