"""What a draft model knows of one sequence: see `worker.engine.draft_model`."""

from worker.engine.lookup import Record
from worker.protocol import Sample


class Drafted:
    """How far the draft model has read a sequence, and how its guesses fared."""

    __slots__ = ("guessed", "num_known", "record", "sample")

    def __init__(self) -> None:
        self.record = Record()
        self.num_known = 0  # positions whose keys and values are in the draft model's cache
        self.guessed: tuple[int, ...] = ()  # tokens that it has read behind these, guesses of its own
        self.sample: Sample | None = None  # how it chooses; None: not yet known

    def forget(self) -> None:
        """The sequence's blocks are given up."""
        self.num_known = 0
        self.guessed = ()
