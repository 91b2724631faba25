"""What a choice has said, by kind, trimmed at the borders: the end of the pipeline from ids to text."""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Literal

from shared.messages import ToolCall
from worker.text.stops import StopFinder

_NEWLINES = "\r\n"
_OPENAI_ID_CHARS, _MISTRAL_ID_CHARS = 24, 9


class Output:
    """Collects text until it is taken; of a tool call its id and name, then its arguments as they grow.

    Stop strings apply to content alone, not to reasoning and not inside tool calls. Line breaks around a reasoning
    block and around tool calls belong to the markup and are dropped; all others are kept.
    """

    def __init__(
        self,
        *,
        stops: StopFinder | None,
        prompt_ids: Sequence[int] = (),
        call_ids: Literal["openai", "mistral"],
        single_call: bool = False,
    ) -> None:
        """`single_call`: the answer ends with its first tool call."""
        self.stopped: str | None = None  # the stop string that ended the answer
        self.is_over = False  # by a stop string, or by the one call
        self._is_single = single_call
        self.num_calls = 0
        self._stops = stops
        self._prompt_ids = prompt_ids
        self._call_ids = call_ids
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._edge = False  # the next line breaks in content follow a block
        self._break = ""  # line breaks at the end of content: a block may follow
        self._reasoning_break = ""
        self._reasoning_edge = True
        self._has_reasoned = False

    def content(self, text: str) -> None:
        """Add to the answer, up to a stop string; what comes after one is dropped."""
        if self.is_over:
            return
        if self._edge:
            text = text.lstrip(_NEWLINES)
            if not text:
                return
            self._edge = False
        if self._stops:
            text, self.stopped = self._stops.feed(text)
        self._append(text)
        if self.stopped is not None:
            self.is_over = True
            self.keep_break()

    def verbatim(self, text: str) -> None:
        """Add markup that turned out to be no markup, without looking for stop strings."""
        if self.is_over:
            return
        self._edge = False
        self._append(text)

    def reasoning(self, text: str) -> None:
        """Add to the reasoning."""
        if self.is_over:
            return
        if self._reasoning_edge:
            text = text.lstrip(_NEWLINES)
            if not text:
                return
            self._reasoning_edge = False
            if self._has_reasoned:  # a further block
                self._reasoning_break = "\n\n"
        body = text.rstrip(_NEWLINES)
        if body:
            self._reasoning.append(self._reasoning_break + body)
            self._reasoning_break = text[len(body) :]
            self._has_reasoned = True
        else:
            self._reasoning_break += text

    def begin_call(self, name: str) -> None:
        """A tool call begins; its arguments follow.

        Its id is a function of the prompt, of its place and of its name, so that a resumed job repeats it.
        """
        if self.is_over:
            return
        self.drop_break()
        index = self.num_calls
        self.num_calls += 1
        digest = hashlib.blake2b(array("q", self._prompt_ids).tobytes())
        digest.update(f"{index}\0{name}".encode())
        if self._call_ids == "mistral":  # its template refuses any other form
            id = digest.hexdigest()[:_MISTRAL_ID_CHARS]
        else:
            id = "call_" + digest.hexdigest()[:_OPENAI_ID_CHARS]
        self._calls.append(ToolCall(index=index, id=id, name=name))

    def arguments(self, text: str) -> None:
        """Add to the arguments of the call that began last."""
        if self.is_over:
            return
        index = self.num_calls - 1
        if not self._calls or self._calls[-1].index != index:
            self._calls.append(ToolCall(index=index))
        self._calls[-1].arguments += text

    def end_call(self) -> None:
        """The call that began last is over; where only one is wanted, so is the answer."""
        self.is_over = self.is_over or self._is_single
        self.drop_break()

    def pause_content(self) -> None:
        """A marker follows: no stop string can continue across it."""
        if self._stops:
            self._append(self._stops.flush())

    def drop_break(self) -> None:
        """What follows or followed is a block: the line breaks beside it are markup."""
        self._break = ""
        self._edge = True

    def keep_break(self) -> None:
        """No block follows: the line breaks held back are content."""
        if self._break:
            self._content.append(self._break)
            self._break = ""

    def end_reasoning(self) -> None:
        """A reasoning block is over."""
        self._reasoning_break = ""
        self._reasoning_edge = True

    def take(self) -> tuple[str, str, list[ToolCall]]:
        """Return and forget content, reasoning and tool calls collected since the last time."""
        taken = "".join(self._content), "".join(self._reasoning), self._calls
        self._content.clear()
        self._reasoning.clear()
        self._calls = []
        return taken

    def _append(self, text: str) -> None:
        if not text:
            return
        body = text.rstrip(_NEWLINES)
        if body:
            self._content.append(self._break + body)
            self._break = text[len(body) :]
        else:
            self._break += text
