"""The channels of gpt-oss: every message has a header that says whom it is for.

<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
"""

import re
from typing import Literal

from worker.protocol import Thinking
from worker.text.call_readers import HeadedCalls
from worker.text.marks import Mark
from worker.text.output import Output
from worker.text.vocabulary import Vocabulary

_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_NEEDED = (_CHANNEL, _MESSAGE, "<|start|>", "<|end|>")
_ENDS = ("<|call|>", "<|return|>")
_BODY = re.compile(r"\s*(?=\{)")
_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")


def detect_harmony(vocabulary: Vocabulary) -> dict[int, Mark]:
    """Return the marks by token id; empty for a model that does not speak in channels."""
    ids = {name: vocabulary.id_of(name) for name in (*_NEEDED, *_ENDS)}
    if any(ids[name] is None for name in _NEEDED):
        return {}
    return {id: Mark("channel", name) for name, id in ids.items() if id is not None}


def harmony_thinking(vocabulary: Vocabulary, budget: int, *, may_call: bool) -> Thinking:
    """How to end the analysis of such a model. `may_call`: leave the channel after it to the model."""

    def ids(*pieces: str) -> list[int]:
        result: list[int] = []
        for piece in pieces:
            id = vocabulary.id_of(piece)
            result += vocabulary.encode(piece, add_special_tokens=False) if id is None else [id]
        return result

    closing = ids("<|end|>", "<|start|>", "assistant")
    if not may_call:
        closing += ids(_CHANNEL, "final", _MESSAGE)
    return Thinking(budget=budget, opening=ids(_CHANNEL, "analysis", _MESSAGE), closing=closing)


class HarmonySorter:
    """Sorts messages by their headers: analysis is reasoning, a recipient makes a tool call, the rest is content."""

    shows_specials = False

    def __init__(self, output: Output, *, has_tools: bool, is_begun: bool = False) -> None:
        """The prompt ended in `<|start|>assistant`, so a header comes first; or, `is_begun`, within a final message."""
        self._output = output
        self._has_tools = has_tools
        self._kind: Literal["header", "reasoning", "content", "call"] = "content" if is_begun else "header"
        self._header = ""
        self._call: HeadedCalls | None = None
        self._has_spoken = is_begun

    @property
    def is_reasoning(self) -> bool:
        return self._kind == "reasoning"

    def text(self, text: str) -> None:
        if self._kind == "header":
            self._header += text
        elif self._kind == "reasoning":
            self._output.reasoning(text)
        elif self._kind == "content":
            self._output.content(text)
        elif self._call:
            self._call.feed(text)

    def mark(self, mark: Mark) -> None:
        if mark.text == _MESSAGE and self._kind == "header":
            self._open()
            return
        self._close()
        self._kind = "header"
        self._header = self._header + mark.text if mark.text == _CHANNEL else ""

    def end(self) -> None:
        self._close()
        if self._kind == "header" and not self._has_spoken:  # a model that does not keep to the format
            self._output.verbatim(self._header)
        self._output.keep_break()

    def _open(self) -> None:
        self._has_spoken = True
        recipient = _RECIPIENT.search(self._header)
        channel = self._header.partition(_CHANNEL)[2].strip()
        if recipient and self._has_tools:
            self._kind, self._call = "call", HeadedCalls(self._output, "", _BODY, name=recipient[1])
        else:
            self._kind = "reasoning" if channel.startswith("analysis") else "content"

    def _close(self) -> None:
        if self._kind == "header":
            return
        self._header = ""
        if self._kind == "content":
            self._output.pause_content()
        elif self._kind == "reasoning":
            self._output.end_reasoning()
        elif self._call:
            self._call.close("")
            self._call = None
