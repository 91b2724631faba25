"""A bound on reasoning: when it is spent, the mark that ends it is written in the model's place."""

from worker.protocol import Thinking


class ThinkingBudget:
    """Follows one choice's output, token by token, and says what must come next where the bound is met.

    The tokens of every block of reasoning count, the marks in the output included. A block that opens when nothing is
    left is closed at once.
    """

    __slots__ = ("_closing", "_due", "_is_open", "_left", "_num_matched", "_opening")

    def __init__(self, terms: Thinking) -> None:
        self._opening = terms.opening
        self._closing = terms.closing
        self._left = terms.budget
        self._is_open = terms.is_open
        self._num_matched = 0  # ids of the opening that the output ends in
        self._due: list[int] = []  # ids that must come next, and are not sampled
        self._check()

    @property
    def due(self) -> list[int]:
        """What comes next, whatever the model would rather say; empty: what it says."""
        return list(self._due)

    def see(self, id: int) -> None:
        """The output goes on with this id."""
        if self._due and id == self._due[0]:
            self._due.pop(0)
        if self._is_open:
            self._left -= 1
            self._is_open = id != self._closing[0]
        elif self._opens(id):
            self._left -= 1
            self._is_open = True
        self._check()

    def _opens(self, id: int) -> bool:
        if id != self._opening[self._num_matched]:
            self._num_matched = 0
        if id == self._opening[self._num_matched]:
            self._num_matched += 1
        if self._num_matched < len(self._opening):
            return False
        self._num_matched = 0
        return True

    def _check(self) -> None:
        if self._is_open and self._left <= 1 and not self._due:
            self._due = list(self._closing)
