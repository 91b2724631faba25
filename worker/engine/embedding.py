"""The serving loop of an embedding model: as `Engine`, but every input is done in one step and nothing is kept.

Owners and their jobs take turns (`turns`), so that one with thousands of inputs holds up no other, and batch jobs wait
behind the rest. A step is as many inputs as fit its tokens when all are padded to the longest. Pure but for the
encoder, which is passed in.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from shared import log
from worker.engine.errors import DeviceLost
from worker.engine.turns import Turns, Waiting
from worker.protocol import Output, Refused, Step, Submit
from worker.stamp import Stamp

_log = log.get(__name__)


class Encoder(Protocol):
    """Computes vectors. `worker.engine.embedder.Embedder` is the real one."""

    vocab_size: int

    def embed(self, batch: list[list[int]]) -> list[bytes]:
        """The vector of each input as little-endian float32. Raises DeviceLost when nothing can run any more."""
        ...


_Row = tuple[str, int, list[int]]  # key, index, ids


class EmbeddingEngine:
    """One embedding model's jobs, from `submit` to the outputs of `step`. Not for use by several threads."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        step_tokens: int,
        context_limit: int,
        token_s: float = 0.0,
        stamp: Stamp | None = None,
        max_waiting: int = 65_536,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._step_tokens = step_tokens
        self._context_limit = context_limit
        self._stamp = stamp
        self._max_waiting = max_waiting
        self._clock = clock
        self._token_s = token_s  # how long a token of a step takes; a running average
        self._jobs = Turns()
        self._num_steps = 0
        self._report = Step()

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or report anything."""
        return bool(self._jobs or self._report.outputs or self._report.refused)

    @property
    def num_waiting(self) -> int:
        """Inputs that no step has taken yet."""
        return sum(len(job.left) for job in self._jobs)

    def submit(self, job: Submit) -> None:
        """Take a job in. What cannot run comes out of the next step as Refused."""
        wanted = [choice.index for choice in job.choices]
        if refused := self._refusal(job, wanted):
            self.abort([(job.key, -1)])
            self._report.refused.append(refused)
            return
        rows = sorted(((index, job.inputs[index]) for index in wanted), key=lambda row: -len(row[1]))
        self._jobs.enter(Waiting(job.key, job.owner, job.batch_class, deque(rows)))

    def abort(self, choices: Iterable[tuple[str, int]]) -> None:
        """Drop these (key, index), -1 for all inputs; nothing more is reported of them."""
        for key, index in choices:
            for job in self._jobs:
                if job.key == key:
                    job.left = deque(row for row in job.left if index not in (-1, row[0]))
                    if not job.left:
                        self._jobs.leave(job)
            report = self._report
            report.outputs = [out for out in report.outputs if out.key != key or index not in (-1, out.choice)]

    def step(self) -> Step:
        """Compute the next batch and return all that happened since the last one."""
        rows = self._take()
        if rows:
            num_tokens = len(rows) * max(len(ids) for _, _, ids in rows)
            self._write_stamp(num_tokens)
            started = self._clock()
            self._run(rows)
            token_s = (self._clock() - started) / num_tokens
            self._token_s = 0.8 * self._token_s + 0.2 * token_s if self._token_s else token_s
        report, self._report = self._report, Step()
        report.running = len({key for key, _, _ in rows})
        report.waiting = len(list(self._jobs))
        if self._stamp and not self.has_work:
            self._stamp.write(self._num_steps, "idle")
        return report

    def _refusal(self, job: Submit, wanted: list[int]) -> Refused | None:
        vocab_size, limit = self._encoder.vocab_size, self._context_limit
        if not wanted or not all(0 <= index < len(job.inputs) and job.inputs[index] for index in wanted):
            return Refused(job.key, "invalid_request", "An embedding needs inputs, and none of them empty.")
        if any(one.key == job.key for one in self._jobs):
            return Refused(job.key, "invalid_request", "A job of this key was running already; both have ended.")
        for index in wanted:
            ids = job.inputs[index]
            if len(ids) > limit:
                message = f"Input {index} has {len(ids)} tokens; the model takes {limit}."
                return Refused(job.key, "context_length_exceeded", message)
            if not 0 <= min(ids) <= max(ids) < vocab_size:
                return Refused(job.key, "invalid_request", f"Input {index} has ids outside 0 … {vocab_size - 1}.")
        if self.num_waiting + len(wanted) > self._max_waiting:
            return Refused(job.key, "capacity", f"More than {self._max_waiting} inputs would be waiting.")
        return None

    def _take(self) -> list[_Row]:
        """The inputs of the next step, each by its turn, as long as they fit; always at least one."""
        rows: list[_Row] = []
        longest = 0
        while self._jobs:
            job = self._jobs.first()
            _, ids = job.left[0]
            if rows and (len(rows) + 1) * max(longest, len(ids)) > self._step_tokens:
                break
            longest = max(longest, len(ids))
            rows.append((job.key, *self._jobs.take(job)))
        return rows

    def _run(self, rows: list[_Row]) -> None:
        """Compute the rows; if that fails, each alone, and refuse the jobs of those that fail again."""
        try:
            vectors = self._encoder.embed([ids for _, _, ids in rows])
        except DeviceLost:
            raise
        except Exception as error:
            if len(rows) > 1:
                _log.warning("embedding.step_failed", rows=len(rows), error=f"{type(error).__name__}: {error}")
                for row in rows:
                    if all(refused.key != row[0] for refused in self._report.refused):
                        self._run([row])
                return
            key = rows[0][0]
            _log.exception("embedding.input_failed", key=key)
            self.abort([(key, -1)])
            self._report.refused.append(Refused(key, "engine_error", f"{type(error).__name__}: {error}"))
            return
        for (key, index, _), vector in zip(rows, vectors, strict=True):
            self._report.outputs.append(Output(key, index, 0, [], "stop", vector=vector))

    def _write_stamp(self, num_tokens: int) -> None:
        self._num_steps += 1
        if self._stamp:
            self._stamp.write(self._num_steps, "prefill", self._token_s * num_tokens)
