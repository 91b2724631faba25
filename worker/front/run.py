"""One attempt of a job at this replica. Pure.

| state | means | left by |
|---|---|---|
| taken | pulled; being claimed, checked and tokenised | running, closed |
| running | in the rank | finished, closed |
| finished | `Done` is published, the owner has not confirmed it | closed |
| closed | its delivery is answered; kept a while for replays | |
"""

from typing import Literal

import msgspec

from shared.messages import Accepted, Done, Failed, Job, Prompt, Timings, Usage
from worker.front.choice import ChoiceRun
from worker.front.request import Resolved

RunState = Literal["taken", "running", "finished", "closed"]
_BASE_BYTES = 2000  # what a kept run costs besides its transcripts


class Run:
    """What the front knows of one attempt. Only `JobTable` changes it."""

    def __init__(self, job: Job, ack: str, now: float, queue_s: float) -> None:
        self.job = job
        self.num_deliveries = 1  # by the queue, so far
        self.ack = ack  # subject that answers the delivery; empty after it was answered
        self.state: RunState = "taken"
        self.answer = b""  # what it was answered with
        self.accepted: Accepted | None = None
        self.verdict: Done | Failed | None = None
        self.resolved: Resolved | None = None  # until its choices are prepared
        self.choices: list[ChoiceRun] = []
        self.unfinished = job.sampling.n  # choices, or inputs of an embedding
        self.vectors: dict[int, bytes] = {}  # of an embedding, by input
        self.adopted = False  # its owner is gone, and it runs on all the same
        self.prefill_done = 0
        self.prefill_total = 0
        self.taken_at = now
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.finished_at = 0.0
        self.closed_at = 0.0
        self.progress_at = now  # when the queue last heard of it
        self.working_at = now  # when its owner last heard of it, before the first token
        self.done_at = 0.0  # when `Done` was last published
        self._queue_s = queue_s
        self._cached_tokens: int | None = None

    @property
    def key(self) -> str:
        """The job's name towards the rank."""
        return f"{self.job.id}#{self.job.attempt}"

    @property
    def is_active(self) -> bool:
        """Whether it needs the rank, now or soon."""
        return self.state in ("taken", "running")

    @property
    def is_supervised(self) -> bool:
        """Whether somebody publishes the job again when this attempt is lost. Otherwise the queue must."""
        return self.job.owner is not None and not self.adopted

    @property
    def size_bytes(self) -> int:
        """What keeping it for replays costs, roughly."""
        return _BASE_BYTES + sum(choice.transcript.size_bytes for choice in self.choices) + self._vector_bytes

    @property
    def _vector_bytes(self) -> int:
        return sum(map(len, self.vectors.values()))

    @property
    def num_slots(self) -> int:
        """What it takes of the rank's slots: an embedding counts once, for its inputs wait for each other."""
        return min(1, self.unfinished) if self.job.task == "embed" else self.unfinished

    def note_cached(self, tokens: int) -> None:
        """A choice began, with so much of its prompt found in the cache: the least of all choices counts once."""
        tokens = min(tokens, self.accepted.prompt_tokens if self.accepted else tokens)
        self._cached_tokens = tokens if self._cached_tokens is None else min(self._cached_tokens, tokens)

    def done(self) -> Done:
        """The final item."""
        usage = Usage(
            prompt_tokens=self.accepted.prompt_tokens if self.accepted else 0,
            completion_tokens=sum(choice.position for choice in self.choices),
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self.choices),
            cached_tokens=self._cached_tokens or 0,
        )
        timings = Timings(self._queue_s)
        if self.first_token_at:
            timings.prefill_s = self.first_token_at - self.taken_at
            timings.decode_s = self.last_token_at - self.first_token_at
        return Done(self.job.id, self.job.attempt, usage, timings)

    def forget_prompt(self) -> None:
        """Let go of what only a running job needs."""
        self.job = msgspec.structs.replace(self.job, prompt=Prompt(), inputs=[], resume=[])
