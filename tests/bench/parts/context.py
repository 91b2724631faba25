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
    answers: tuple[int, ...]  # tokens out, of the rows over HTTP
    transformers_python: str
    llama_python: str
    say: Callable[[str], None]

    def checkpoint(self, shape: str) -> Path:
        """The checkpoint of a shape."""
        return checkpoints.make(self.directory, shape)

    def is_first(self, shape: str) -> bool:
        """Whether this is the shape that everything is measured on."""
        return shape == self.shapes[0]

    def heavy_rounds(self, shape: str) -> int:
        """Rounds of what takes minutes: one fewer, and one alone of all shapes but the first."""
        return max(1, self.rounds - 1) if self.is_first(shape) else 1

    def texts(self, shape: str) -> Texts:
        """Prompts for it; the same in every run."""
        return _texts(self.checkpoint(shape))


@functools.cache
def _texts(path: Path) -> Texts:
    return Texts(path)


Row = Callable[[Context, str], Iterator[Figure]]  # context and shape
