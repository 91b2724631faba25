"""Events of a text completion to OpenAI's bytes. The choices of the first prompt come first, then the second's …"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway import sse
from gateway.dialects.openai_chat_answer import finish_json, timings_json, usage_json
from gateway.request import Broken, Event, Finished, InferenceRequest, Opened
from shared.messages import Delta, TokenLogprob


def logprobs_json(entries: list[TokenLogprob], offset: int) -> dict[str, Any]:
    """Log probabilities in the shape of this surface; `offset` is where the first token begins in the text."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.text)
    return {
        "tokens": [entry.text for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{text: logprob for _, text, logprob in entry.top} for entry in entries],
        "text_offset": offsets,
    }


class Stream:
    """The frames of a streamed answer."""

    def __init__(self, request: InferenceRequest, identifier: str, created: int) -> None:
        self.has_ended = False
        self._request = request
        self._notes = request.notes
        self._head = b'data: {"id":%s,"object":"text_completion","created":%d,"model":%s,' % (
            orjson.dumps(identifier),
            created,
            orjson.dumps(request.model),
        )
        self._tail = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"
        self._is_open = False
        self._offsets = [0] * (request.sampling.n * (1 + len(request.further)))
        self._prepare("")

    def write(self, event: Event) -> bytes:
        """The bytes of an event."""
        if type(event) is Delta:
            return self._open() + self._delta(event)
        if isinstance(event, Opened):
            self._prepare(event.fingerprint)
            return self._open()
        if isinstance(event, Finished):
            self.has_ended = True
            return self._open() + self._usage(event) + sse.DONE
        if isinstance(event, Broken):
            self.has_ended = True
            return sse.error(event.error)
        return b""

    def _prepare(self, fingerprint: str) -> None:
        self._start = self._head + b'"system_fingerprint":%s,' % (orjson.dumps(fingerprint or None))

    def _open(self) -> bytes:
        """The prompts, if they are to be part of the texts."""
        if self._is_open:
            return b""
        self._is_open = True
        frames = []
        if self._notes.echo:
            for choice in range(len(self._offsets)):
                text = self._notes.echo[choice // self._notes.made]
                self._offsets[choice] = len(text)
                frames.append(self._frame(choice, text))
        return b"".join(frames)

    def _delta(self, delta: Delta) -> bytes:
        logprobs = None
        if delta.extra is not None and delta.extra.logprobs:
            logprobs = logprobs_json(delta.extra.logprobs, self._offsets[delta.choice])
            self._offsets[delta.choice] += sum(len(entry.text) for entry in delta.extra.logprobs)
        if not delta.text and logprobs is None and delta.finish is None:
            return b""
        return self._frame(delta.choice, delta.text, delta.finish, logprobs)

    def _frame(
        self, choice: int, text: str, finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        entry = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_json(finish)}
        return self._start + b'"choices":[%s]' % orjson.dumps(entry) + self._tail

    def _usage(self, event: Finished) -> bytes:
        if not self._request.include_usage:
            return b""
        usage, timings = usage_json(event.usage), timings_json(event.timings)
        return self._start + b'"choices":[],"usage":%s,"timings":%s}\n\n' % (orjson.dumps(usage), orjson.dumps(timings))


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def mean_logprob(self) -> float:
        return sum(one.logprob for one in self.logprobs) / len(self.logprobs) if self.logprobs else float("-inf")


class Whole:
    """An answer in one piece."""

    def __init__(self, request: InferenceRequest, identifier: str, created: int) -> None:
        self._request = request
        self._notes = request.notes
        self._id = identifier
        self._created = created
        self._fingerprint = ""
        self._choices = [_Choice() for _ in range(request.sampling.n * (1 + len(request.further)))]

    def add(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Opened):
            self._fingerprint = event.fingerprint
        elif isinstance(event, Delta):
            choice = self._choices[event.choice]
            choice.text.append(event.text)
            choice.finish = event.finish
            if event.extra is not None:
                choice.logprobs += event.extra.logprobs

    def body(self, end: Finished) -> bytes:
        """The whole answer as JSON."""
        made, given = self._notes.made, []
        for prompt in range(len(self._choices) // made):
            choices = self._choices[prompt * made : (prompt + 1) * made]
            if made > self._notes.n:
                choices = sorted(choices, key=_Choice.mean_logprob, reverse=True)[: self._notes.n]
            given += [(self._notes.echo[prompt] if self._notes.echo else "", choice) for choice in choices]
        return orjson.dumps(
            {
                "id": self._id,
                "object": "text_completion",
                "created": self._created,
                "model": self._request.model,
                "system_fingerprint": self._fingerprint or None,
                "choices": [self._choice(index, *one) for index, one in enumerate(given)],
                "usage": usage_json(end.usage),
                "timings": timings_json(end.timings),
            }
        )

    def _choice(self, index: int, echo: str, choice: _Choice) -> dict[str, Any]:
        logprobs = logprobs_json(choice.logprobs, len(echo)) if self._notes.with_logprobs else None
        text = echo + "".join(choice.text)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_json(choice.finish)}
