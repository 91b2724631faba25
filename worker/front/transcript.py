"""What was published of one choice, kept small so that it can be published again.

A running choice keeps all of it (about 30 bytes a token), because an outage may eat any part of it.
"""

from array import array
from bisect import bisect_left
from io import StringIO

from shared.messages import Delta, Extra, TokenLogprob, ToolCall

_EXTRA_BYTES = 400  # what one kept Extra costs, roughly


class Transcript:
    """The deltas of one choice. A delta can be cut only where one ended: text has no finer positions."""

    def __init__(self, start: int) -> None:
        self.start = start  # position of the first id published here
        self.finish: str | None = None
        self._ids = array("I")
        self._ends = array("I", [start])  # position after each delta; the first entry is before all of them
        self._text = StringIO()
        self._text_ends = array("I", [0])
        self._reasoning = StringIO()
        self._reasoning_ends = array("I", [0])
        self._extras: dict[int, tuple[list[ToolCall], list[TokenLogprob]]] = {}  # by index of the delta

    @property
    def size_bytes(self) -> int:
        """What keeping this costs, roughly."""
        words = len(self._ids) + 3 * len(self._ends)
        return 4 * (words + self._text.tell() + self._reasoning.tell()) + _EXTRA_BYTES * len(self._extras)

    def append(self, delta: Delta) -> None:
        """Keep a delta that is being published; it starts where the last one ended."""
        extra = delta.extra
        self._ids.extend(delta.ids)
        if extra is not None:
            self._reasoning.write(extra.reasoning)
            if extra.tool_calls or extra.logprobs:
                self._extras[len(self._ends) - 1] = (extra.tool_calls, extra.logprobs)
        self._text.write(delta.text)
        self._ends.append(delta.start + len(delta.ids))
        self._text_ends.append(self._text.tell())
        self._reasoning_ends.append(self._reasoning.tell())
        self.finish = delta.finish

    def since(self, job: str, attempt: int, choice: int, position: int, max_tokens: int) -> list[Delta] | None:
        """Everything from `position` on, as few deltas of at most about `max_tokens` ids each.

        None when no delta ended there: the asker holds something else than what was published here.
        """
        first = bisect_left(self._ends, position)
        if first == len(self._ends) or self._ends[first] != position:
            return None
        deltas = []
        last = len(self._ends) - 1
        while first < last:
            limit = self._ends[first] + max_tokens
            end = max(first + 1, min(last, bisect_left(self._ends, limit, first, last)))
            deltas.append(self._merged(job, attempt, choice, first, end))
            first = end
        if deltas:
            deltas[-1].finish = self.finish
        return deltas

    def _merged(self, job: str, attempt: int, choice: int, first: int, end: int) -> Delta:
        start, stop = self._ends[first], self._ends[end]
        reasoning = _span(self._reasoning, self._reasoning_ends[first], self._reasoning_ends[end])
        calls: list[ToolCall] = []
        logprobs: list[TokenLogprob] = []
        for index in range(first, end) if self._extras else ():
            more_calls, more_logprobs = self._extras.get(index, ([], []))
            _join(calls, more_calls)
            logprobs += more_logprobs
        extra = Extra(reasoning, calls, logprobs) if reasoning or calls or logprobs else None
        return Delta(
            job,
            attempt,
            choice,
            start,
            self._ids[start - self.start : stop - self.start].tolist(),
            _span(self._text, self._text_ends[first], self._text_ends[end]),
            extra=extra,
        )


def _span(text: StringIO, start: int, end: int) -> str:
    if start == end:
        return ""
    here = text.tell()
    text.seek(start)
    span = text.read(end - start)
    text.seek(here)
    return span


def _join(calls: list[ToolCall], more: list[ToolCall]) -> None:
    """Add pieces of tool calls; those of one call become one."""
    for piece in more:
        if calls and calls[-1].index == piece.index:
            last = calls[-1]
            calls[-1] = ToolCall(last.index, last.id, last.name, last.arguments + piece.arguments)
        else:
            calls.append(piece)
