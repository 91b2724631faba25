"""Recording work on a device, replaying it, and reading results later than they are computed."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Reading(Protocol):
    """Numbers on their way to the host."""

    def wait(self) -> list[int]:
        """The numbers, once they are there."""
        ...


class Recorder(Protocol):
    """What decode graphs need of a device. Everything happens in the order in which it is asked for."""

    def host(self, size: int, dtype: torch.dtype) -> Tensor:
        """Zeros in host memory from which copies to the device do not wait."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work, which must always use the same memory; returns what replays it."""
        ...

    def read(self, numbers: Tensor) -> Reading:
        """Begin to copy numbers to the host."""
        ...


class CudaRecorder:
    """CUDA graphs. All share one pool of memory: record the largest first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host(self, size: int, dtype: torch.dtype) -> Tensor:
        """See Recorder."""
        return torch.zeros(size, dtype=dtype, pin_memory=True)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Recorder."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(2):  # kernels are compiled and libraries make their workspaces
                work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def read(self, numbers: Tensor) -> Reading:
        """See Recorder."""
        return _CudaReading(numbers)


class _CudaReading:
    def __init__(self, numbers: Tensor) -> None:
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._host.copy_(numbers, non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(torch.cuda.current_stream(numbers.device))

    def wait(self) -> list[int]:
        """See Reading."""
        self._done.synchronize()
        numbers: list[int] = self._host.tolist()
        return numbers
