"""Sorting what a model writes into content, reasoning and tool calls, by its marks.

    content ── reasoning_open ──▶ reasoning ── reasoning_close ──▶ content
    content ── call_open ──▶ call ── call_close, end ──▶ content

A mark that means nothing where it stands is text, except that stray reasoning marks and the marks around all calls
are dropped: they are not meant for anybody.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from worker.text.call_readers import CallReader, Schemas
from worker.text.marks import Mark
from worker.text.needles import Needles
from worker.text.output import Output
from worker.text.tools import Convention


class Sorter(Protocol):
    """Takes text and marks in the order in which a model writes them."""

    @property
    def is_reasoning(self) -> bool: ...

    @property
    def shows_specials(self) -> bool:
        """Whether special tokens count as text here."""

    def text(self, text: str) -> None: ...
    def mark(self, mark: Mark) -> None: ...
    def end(self) -> None: ...


class BlockSorter:
    """For models that put reasoning and calls between an opening and a closing mark."""

    def __init__(
        self,
        output: Output,
        *,
        text_marks: Sequence[Mark],
        starts_reasoning: bool,
        convention: Convention | None,
        schemas: Schemas,
        is_begun: bool = False,
    ) -> None:
        """`text_marks`: those that are no single tokens. `convention`: None when no tools were offered.

        `is_begun`: what comes continues a text.
        """
        self._output = output
        self._state: Literal["content", "reasoning", "call"] = "reasoning" if starts_reasoning else "content"
        self._convention = convention
        self._schemas = schemas
        self._call: CallReader | None = None  # of the call that is being written
        self._bare = (
            "" if convention and convention.bare and not is_begun else None
        )  # beginning of an answer that may be a bare call
        self._text_marks = {mark.text: mark for mark in text_marks}
        self._needles = Needles(list(self._text_marks)) if text_marks else None
        self._held = ""

    @property
    def is_reasoning(self) -> bool:
        return self._state == "reasoning"

    @property
    def shows_specials(self) -> bool:
        return self._state == "call"

    def text(self, text: str) -> None:
        if not self._needles:
            self._plain(text)
            return
        text = self._held + text
        while found := self._needles.find(text):
            start, needle = found
            self._plain(text[:start])
            self._apply(self._text_marks[needle])
            text = text[start + len(needle) :]
        held = self._needles.held(text)
        self._held = text[len(text) - held :]
        self._plain(text[: len(text) - held])

    def mark(self, mark: Mark) -> None:
        self._release()
        self._apply(mark)

    def end(self) -> None:
        self._release()
        if self._state == "call":
            self._end_call("")
        elif self._state == "content":
            if self._bare:
                self._output.content(self._bare)
                self._bare = None
            self._output.pause_content()
            self._output.keep_break()

    def _release(self) -> None:
        """Text that was held back is no mark after all."""
        text, self._held = self._held, ""
        self._plain(text)

    def _plain(self, text: str) -> None:
        if not text:
            return
        if self._state == "reasoning":
            self._output.reasoning(text)
        elif self._call:
            self._call.feed(text)
        elif self._bare is None:
            self._output.content(text)
        else:
            self._begin(text)

    def _begin(self, text: str) -> None:
        """The answer begins: a call without opening mark is known by its first characters."""
        assert self._convention is not None and self._bare is not None
        text = self._bare + text
        verdict = self._convention.begins_bare(text)
        self._bare = text if verdict is None else None
        if verdict:
            self._open_call("").feed(text)
        elif verdict is False:
            self._output.content(text)

    def _apply(self, mark: Mark) -> None:
        state, role = self._state, mark.role
        if state == "content" and role == "reasoning_open":
            self._leave_content()
            self._output.drop_break()
            self._state = "reasoning"
        elif state == "reasoning" and role == "reasoning_close":
            self._output.end_reasoning()
            self._output.drop_break()
            self._state = "content"
        elif state == "content" and role == "call_open":
            self._leave_content()
            self._open_call(mark.text)
        elif state == "call" and role == "call_close":
            self._end_call(mark.text)
        elif state == "call" and role == "call_open" and self._convention and not self._convention.closing:
            self._end_call("")
            self._open_call(mark.text)
        elif role == "call_frame" and state != "reasoning":
            self._leave_content()
            self._output.drop_break()
        elif state == "call" or role in ("call_open", "call_close"):
            self._plain(mark.text)

    def _leave_content(self) -> None:
        if self._bare:
            self._output.content(self._bare)
        self._bare = None
        self._output.pause_content()

    def _open_call(self, opening: str) -> CallReader:
        assert self._convention is not None
        self._state = "call"
        self._call = self._convention.read(self._output, self._schemas, opening)
        return self._call

    def _end_call(self, closing: str) -> None:
        call, self._call = self._call, None
        self._state = "content"
        if call:
            call.close(closing)
