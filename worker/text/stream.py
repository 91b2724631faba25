"""Token ids of one choice to what its client sees, as it comes.

    ids ─ Detokeniser ─▶ text, marks ─ Sorter ─▶ content ─ StopFinder ─▶ Output
                                        ├──────▶ reasoning ─────────────▶ Output
                                        └──────▶ tool calls ────────────▶ Output

Every stage sees one id at a time, so the outcome depends on the ids alone and not on how they were cut into feeds:
a stream that is fed the ids of a lost attempt stands where the lost one stood.
"""

from collections.abc import Collection, Mapping

import msgspec

from shared.messages import ToolCall
from worker.text.detokenise import Detokeniser
from worker.text.marks import Mark
from worker.text.output import Output
from worker.text.sorter import Sorter
from worker.text.stops import StopFinder
from worker.text.vocabulary import Vocabulary


class Piece(msgspec.Struct, frozen=True):
    """What some ids settled. All of it is new: pieces add up to the answer."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    stopped: str | None = None  # the stop string that ended the choice
    consumed: int = 0  # how many of the ids count: fewer than were fed when a stop string was met
    finish: str | None = None  # from `finish` only: the reason to report
    is_over: bool = False  # a stop string, or a call after which no more may come, ended the choice


class TextStream:
    """The text of one choice. Stop strings apply to content, not to reasoning or tool calls."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        detokeniser: Detokeniser,
        *,
        silent_ids: Collection[int],
        stops: StopFinder | None = None,
        output: Output | None = None,
        sorter: Sorter | None = None,
        marks: Mapping[int, Mark] | None = None,
    ) -> None:
        """`sorter` writes to `output`; without one everything is content. `silent_ids`: end tokens, never shown."""
        self.reasoning_tokens = 0
        self._vocabulary = vocabulary
        self._detokeniser = detokeniser
        self._silent_ids = silent_ids
        self._stops = stops
        self._output = output
        self._sorter = sorter
        self._marks = marks or {}
        self._over = False

    def feed(self, ids: list[int]) -> Piece:
        """Take the next ids and return what they settle. After a stop string, ids count for nothing."""
        if self._over:
            return Piece()
        if self._sorter is None or self._output is None:
            return self._feed_plain(ids)
        return self._feed_sorted(ids, self._sorter, self._output)

    def finish(self, reason: str) -> Piece:
        """Return what was held back, and the finish reason: a "stop" with tool calls is "tool_calls"."""
        text, stopped, calls, is_over = "", None, 0, False
        reasoning = ""
        tool_calls: list[ToolCall] = []
        if self._sorter and self._output:
            if not self._over:
                self._sorter.text(self._detokeniser.flush())
                self._sorter.end()
                text, reasoning, tool_calls = self._output.take()
                stopped = self._output.stopped
            calls, is_over = self._output.num_calls, self._output.is_over
        elif not self._over:
            text, stopped = self._plain(self._detokeniser.flush())
            if self._stops and stopped is None:
                text += self._stops.flush()
        self._over = True
        if stopped is not None or is_over:
            reason = "stop"
        return Piece(text, reasoning, tool_calls, stopped, 0, "tool_calls" if calls and reason == "stop" else reason)

    def token_text(self, id: int) -> str:
        """One token as text, for log probabilities."""
        return self._vocabulary.token_text(id)

    def _feed_plain(self, ids: list[int]) -> Piece:
        step, silent = self._detokeniser.step, self._silent_ids
        if self._stops is None:
            return Piece("".join([step(id) for id in ids if id not in silent]), consumed=len(ids))
        texts = []
        for count, id in enumerate(ids, 1):
            text, stopped = self._plain(step(id) if id not in silent else "")
            texts.append(text)
            if stopped is not None:
                self._over = True
                return Piece("".join(texts), stopped=stopped, consumed=count, is_over=True)
        return Piece("".join(texts), consumed=len(ids))

    def _plain(self, text: str) -> tuple[str, str | None]:
        return self._stops.feed(text) if self._stops and text else (text, None)

    def _feed_sorted(self, ids: list[int], sorter: Sorter, output: Output) -> Piece:
        consumed = len(ids)
        for count, id in enumerate(ids, 1):
            was_reasoning = sorter.is_reasoning
            mark = self._marks.get(id)
            if mark:
                self._mark(mark, sorter)
            elif id in self._silent_ids:
                continue
            else:
                text = self._detokeniser.step(id)
                if not text and sorter.shows_specials and id in self._vocabulary.special_ids:
                    text = self._detokeniser.flush() + self._vocabulary.content(id)
                if text:
                    sorter.text(text)
            if was_reasoning or sorter.is_reasoning:
                self.reasoning_tokens += 1
            if output.is_over:
                self._over = True
                consumed = count
                break
        text, reasoning, tool_calls = output.take()
        return Piece(text, reasoning, tool_calls, output.stopped, consumed, is_over=output.is_over)

    def _mark(self, mark: Mark, sorter: Sorter) -> None:
        """Characters do not continue across a mark, and after it a new text begins."""
        torn = self._detokeniser.restart()
        if torn:
            sorter.text(torn)
        sorter.mark(mark)
