"""A `Recorder` without a device: what is recorded is kept as a function, and a replay calls it."""

from collections.abc import Callable

import torch
from torch import Tensor


class FakeRecorder:
    """Replays at once, on the CPU, over the same memory as a device would; readings are taken when they are asked for.

    Like a device it computes before it is read, so numbers are copied at that moment and handed out later.
    """

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0
        self.num_unread = 0

    def host(self, size: int, dtype: torch.dtype) -> Tensor:
        """Ordinary memory."""
        return torch.zeros(size, dtype=dtype)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run it once, as a device does to warm up."""
        work()
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            work()

        return replay

    def read(self, numbers: Tensor) -> "FakeReading":
        """Copy now."""
        self.num_unread += 1
        return FakeReading(self, numbers.tolist())


class FakeReading:
    """What was copied."""

    def __init__(self, recorder: FakeRecorder, numbers: list[int]) -> None:
        self._recorder = recorder
        self._numbers = numbers

    def wait(self) -> list[int]:
        """Hand it out."""
        self._recorder.num_unread -= 1
        return self._numbers
