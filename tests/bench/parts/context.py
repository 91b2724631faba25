"""What a row of the benchmark is given."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.parts import checkpoints
from tests.bench.parts.checkpoints import Texts
from tests.bench.parts.figures import Figure


@dataclass(frozen=True)
class Context:
    """Settings of a run."""

    directory: Path  # checkpoints, kept between runs
    scratch: Path  # of this run
    shapes: tuple[str, ...]
    rounds: int
    clients: tuple[int, ...]
    transformers_python: str
    llama_python: str
    say: Callable[[str], None]

    def checkpoint(self, shape: str) -> Path:
        """The checkpoint of a shape."""
        return checkpoints.make(self.directory, shape)

    def texts(self, shape: str) -> Texts:
        """Prompts for it; the same in every run."""
        return _texts(self.checkpoint(shape))


@functools.cache
def _texts(path: Path) -> Texts:
    return Texts(path)


Row = Callable[[Context, str], Iterator[Figure]]  # context and shape
