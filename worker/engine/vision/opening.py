"""A job that cannot begin yet: its grammar, its images or both are being made ready elsewhere."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.protocol import Submit

if TYPE_CHECKING:
    from worker.engine.grammar import Matcher


@dataclass(frozen=True, slots=True)
class Opening:
    """What a job waits for; None: not for that."""

    job: Submit
    grammar: "Future[list[Matcher]] | None"
    images: "Future[Any] | None"

    @property
    def futures(self) -> "list[Future[Any]]":
        """All of it."""
        return [future for future in (self.grammar, self.images) if future is not None]

    @property
    def is_done(self) -> bool:
        """Whether the job can begin, or has failed."""
        return all(future.done() for future in self.futures)

    def cancel(self) -> None:
        """Nobody waits for the job any more."""
        if self.images is not None:
            self.images.cancel()
