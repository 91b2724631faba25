"""One choice of a running job: the ids that its steps bring, and the text they settle. Pure."""

from collections.abc import Callable

from shared.messages import Delta, Extra, TokenLogprob
from worker.front.errors import RankFault
from worker.front.transcript import Transcript
from worker.protocol import ChoiceLogprob, Output
from worker.text.stream import Piece, TextStream

_NOTHING = Piece()


class ChoiceRun:
    """What became of one choice so far."""

    __slots__ = (
        "_stop_ids", "_stream", "_token_text", "attempt", "finish", "index", "job", "position", "reasoning_tokens",
        "transcript",
    )  # fmt: skip

    def __init__(
        self,
        job: str,
        attempt: int,
        index: int,
        stream: TextStream,
        token_text: Callable[[int], str],
        stop_ids: frozenset[int],
    ) -> None:
        self.job = job
        self.attempt = attempt
        self.index = index
        self.position = 0
        self.finish: str | None = None
        self.reasoning_tokens = 0
        self.transcript = Transcript(0)
        self._stream: TextStream | None = stream
        self._token_text = token_text
        self._stop_ids = stop_ids

    def resume(self, ids: list[int], finish: str | None, max_tokens: int) -> Delta | None:
        """Take what was delivered before as given. A delta only if this shows the choice to be over already."""
        assert self._stream is not None
        self.transcript = Transcript(len(ids))
        self.position = len(ids)
        at_stop_id = bool(ids) and ids[-1] in self._stop_ids
        piece = self._stream.feed(ids[:-1] if at_stop_id else ids)
        if finish is not None:
            self._end(finish)
            return None
        if piece.is_over or at_stop_id:
            return self._delta([], Piece(stopped=piece.stopped), None, "stop")
        return self._delta([], _NOTHING, None, "length") if self.position >= max_tokens else None

    def advance(self, output: Output) -> Delta:
        """The delta for what a step brought. Raises RankFault if it does not continue what came before.

        `finish` is set afterwards when the choice is over, also by a stop string or by
        its one call, which the rank knows nothing of.
        """
        stream = self._stream
        if output.start != self.position or stream is None:
            raise RankFault(f"choice {self.index} of {output.key} is at {self.position}, not at {output.start}")
        ids, finish = output.ids, output.finish
        # The id that ended the choice counts, but makes no text.
        at_stop_id = finish == "stop" and bool(ids) and ids[-1] in self._stop_ids
        piece = stream.feed(ids[:-1] if at_stop_id else ids)
        logprobs = output.logprobs
        if piece.is_over:
            ids, finish = ids[: piece.consumed], "stop"
            logprobs = logprobs[: piece.consumed] if logprobs else logprobs
        return self._delta(ids, piece, logprobs, finish)

    def _delta(self, ids: list[int], piece: Piece, logprobs: list[ChoiceLogprob] | None, finish: str | None) -> Delta:
        text, reasoning, calls = piece.text, piece.reasoning, piece.tool_calls
        tail: Piece | None = None
        if finish is not None:
            assert self._stream is not None
            tail = self._stream.finish(finish)
            text, reasoning, calls = text + tail.text, reasoning + tail.reasoning, [*calls, *tail.tool_calls]
            finish = tail.finish or finish
        stopped = piece.stopped if tail is None or tail.stopped is None else tail.stopped
        extra = None
        if reasoning or calls or logprobs or stopped is not None:
            extra = Extra(reasoning, calls, [self._logprob(entry) for entry in logprobs or ()], stopped)
        delta = Delta(self.job, self.attempt, self.index, self.position, ids, text, finish, extra)
        self.position += len(ids)
        self.transcript.append(delta)
        if finish is not None:
            self._end(finish)
        return delta

    def _end(self, finish: str) -> None:
        assert self._stream is not None
        self.finish = finish
        self.reasoning_tokens = self._stream.reasoning_tokens
        self._stream = None  # the text state is not needed again; the transcript is

    def _logprob(self, entry: ChoiceLogprob) -> TokenLogprob:
        text = self._token_text
        return TokenLogprob(entry.id, text(entry.id), entry.logprob, [(id, text(id), lp) for id, lp in entry.top])
