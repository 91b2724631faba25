"""The state machine of one job, from its publication to its last token. Pure: items in, actions out.

| state | meaning |
|---|---|
| queued | published or about to be; no replica has answered for the current attempt |
| running | `replica` works on the current attempt |
| replaying | as running, but deltas are missing and the replica was asked to send them again |
| done | every choice finished |
| failed | ended with `error` |
| cancelled | nobody wants the result any more |

The attempt number is the fencing token: every new publication raises it, and nothing said under a lower number
counts. What was delivered is held as token ids per choice, so the next attempt can resume from them, and a delta
counts only where it continues them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.errors import ApiError, ReplicaLost, SlowClient, of_failure
from gateway.request import Broken, Event, Finished, Opened, Waiting
from shared.messages import (
    Accepted,
    Claim,
    Claimed,
    Delta,
    Done,
    Embedded,
    Failed,
    Item,
    Job,
    Replayed,
    ResumeChoice,
    Timings,
    Usage,
    Working,
)

State = Literal["queued", "running", "replaying", "done", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset(("done", "failed", "cancelled"))

MAX_BUFFERED = 8192  # events that wait for a slow reader
MAX_EARLY = 512  # deltas kept behind a gap
MAX_ATTEMPT = 1000  # voluntary moves do not count as losses, but do not go on for ever either
MAX_FRUITLESS = 3
MAX_PARDONS = 2
CRASHES = frozenset(("replica_lost", "dead", "hung"))  # losses that the job itself may have caused
NUM_CRASHES = 2  # of these make a suspect
RECENT_S = 1.0  # a replica heard within this time is doing well


class Publish(Struct, frozen=True):
    """Put the job into the queue under this attempt."""

    attempt: int
    reason: str = ""  # why it is published again


class DeleteMessage(Struct, frozen=True):
    """Take this message of an earlier attempt, or of an ended job, out of the queue."""

    seq: int


class SendCancel(Struct, frozen=True):
    """Tell a replica to stop working on this attempt."""

    replica: str
    attempt: int


class SendConfirm(Struct, frozen=True):
    """Tell a replica that everything has arrived."""

    replica: str
    attempt: int


class AskReplay(Struct, frozen=True):
    """Ask a replica to send again what follows these positions."""

    replica: str
    attempt: int
    positions: list[int]


class End(Struct, frozen=True):
    """The flight is over; forget it."""


Action = Publish | DeleteMessage | SendCancel | SendConfirm | AskReplay | End
NOTHING: tuple[Action, ...] = ()
_END = End()


class Choice(Struct):
    """What was delivered of one choice."""

    ids: list[int] = []
    finish: str | None = None
    seen: int = 0  # the highest position that is known to exist
    last_s: float = 0.0


class Flight:
    """One job under way. Every method that returns actions must have them performed, in order."""

    def __init__(self, job: Job, *, max_attempts: int, deadline: float, now: float) -> None:
        self.job = job
        self.id = job.id
        self.model = job.model
        self.attempt = 1
        self.max_attempts = max_attempts
        self.losses: list[str] = []
        self.moves: list[str] = []  # reasons of every new attempt
        self.pardons = 0
        self.state: State = "queued"
        self.replica = ""
        self.worker = ""
        self.fingerprint = ""
        self.prompt_tokens = 0
        self.phase = ""  # what the replica last said it does, before the first token
        self.ahead: int | None = None  # jobs before this one in the queue, at most; None: unknown
        self.vanished = 0  # how often the queue seemed to have lost the message
        self.usage: Usage | None = None
        self.error: ApiError | None = None
        self.seq: int | None = None
        self.choices = [Choice() for _ in range(len(job.inputs) or job.sampling.n)]  # or inputs of an embedding
        self.outbox: list[Event] = []
        self.notify: Callable[[], None] = lambda: None
        self.on_hold: Callable[[Flight], None] = lambda flight: None  # called when `worker` is known
        self.observe_gap: Callable[[float], None] = lambda seconds: None
        # Moments, all of one monotonic clock; 0.0 where it has not come yet.
        self.deadline = deadline
        self.started = now
        self.published = 0.0
        self.delivered = 0.0  # first seen to have left the queue without an answer
        self.accepted = 0.0
        self.heard = now
        self.asked = 0.0
        self.first_token = 0.0
        self.last_token = 0.0
        self.ended = 0.0
        self.emitted = now
        self._early: list[Delta] = []
        self._fruitless = 0  # replays in a row that brought nothing
        self._done: Done | None = None
        self._granted: Claim | None = None
        self._num_forgiven = 0  # of the losses, the first so many
        self._is_left = False  # done, and its replica gone: nobody else takes the message out of the queue

    # --- what others read ------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing more can happen."""
        return self.state in ENDED

    @property
    def num_tokens(self) -> int:
        """Tokens delivered, all choices."""
        return 0 if self.job.inputs else sum(self.positions())

    @property
    def is_suspect(self) -> bool:
        """Whether replicas died so often under this job that it may be what kills them."""
        return bool(self.losses) and sum(one in CRASHES for one in self.losses[self._num_forgiven :]) >= NUM_CRASHES

    def pardon(self) -> None:
        """It ran well while other suspects waited: what died before was not its fault. Not granted for ever."""
        if self.pardons < MAX_PARDONS:
            self.pardons += 1
            self._num_forgiven = len(self.losses)

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.outbox = self.outbox, []
        return events

    def job_to_publish(self, wall: float) -> Job:
        """The job as its current attempt goes into the queue; `wall` is unix time."""
        resume: list[ResumeChoice] = []
        if self.attempt > 1 and (self.num_tokens or any(choice.finish for choice in self.choices)):
            resume = self._resume()
        return msgspec.structs.replace(self.job, attempt=self.attempt, resume=resume, published_s=wall)

    def positions(self) -> list[int]:
        """The position up to which each choice is held."""
        return [len(choice.ids) for choice in self.choices]

    # --- from a replica --------------------------------------------------------------------------------------

    def on_item(self, replica: str, worker: str, item: Item, now: float) -> Sequence[Action]:
        """Something a replica said about this job."""
        # 1. An ended flight, or a lower attempt: whoever still works on it should not.
        if self.state in ENDED or item.attempt < self.attempt:
            return (SendCancel(replica, item.attempt),)
        # 2. A higher attempt was never given out.
        if item.attempt > self.attempt:
            return NOTHING
        # 3. The first replica to speak holds the attempt; another one is a double delivery.
        if self.replica != replica:
            if self.replica:
                return (SendCancel(replica, item.attempt),)
            if type(item) is Failed:
                self.worker = worker
            else:
                self._hold(replica, worker, now)
        self.heard = now
        # 4. What it says.
        if type(item) is Delta:
            return self._on_delta(item, now)
        if type(item) is Accepted:
            return self._on_accepted(item, worker)
        if type(item) is Done:
            return self._on_done(item, now)
        if type(item) is Failed:
            return self._on_failed(item, now)
        if type(item) is Embedded:
            return self._on_embedded(item, now)
        if isinstance(item, Working):
            self.phase = item.phase
        return NOTHING

    def on_replayed(self, action: AskReplay, reply: Replayed, now: float) -> Sequence[Action]:
        """The answer to an AskReplay."""
        if not self._is_replaying() or (self.replica, self.attempt) != (action.replica, action.attempt):
            return NOTHING
        self.heard = now
        if reply.gone:
            return self._move("replay_gone", now)
        before = sum(self.positions())
        early, self._early = self._early, []
        actions: list[Action] = []
        for item in (*reply.items, *sorted(early, key=lambda delta: delta.start)):
            if self._is_replaying() and item.attempt == self.attempt:
                actions += self.on_item(self.replica, self.worker, item, now)
        if not self._is_replaying():
            return actions  # it ended, or moved
        self.state = "running"
        if self._done is None and not self._is_behind():
            return actions
        # Something is still missing: ask on while that helps. One answer in vain may have crossed deltas that came by.
        self._fruitless = 0 if sum(self.positions()) > before else self._fruitless + 1
        helps = self._fruitless < MAX_FRUITLESS
        return [*actions, *(self._ask(now) if helps else self._move("replay_incomplete", now))]

    def on_replay_failed(self, action: AskReplay) -> Sequence[Action]:
        """No answer to an AskReplay: the next delta or the supervisor asks again, or the replica is found dead."""
        if self._is_replaying() and (self.replica, self.attempt) == (action.replica, action.attempt):
            self.state = "running"
        return NOTHING

    # --- from the queue --------------------------------------------------------------------------------------

    def on_published(self, attempt: int, seq: int, now: float) -> Sequence[Action]:
        """The queue holds this attempt as message `seq`."""
        if attempt == self.attempt and self.state == "done" and not self._is_left:
            return NOTHING  # it was quick: its replica takes the message away when it has our confirmation
        if attempt != self.attempt or self.state in ENDED:
            return (DeleteMessage(seq),)
        self.seq = seq
        self.published = now
        return NOTHING

    def on_publish_failed(self, attempt: int, error: ApiError, now: float) -> Sequence[Action]:
        """This attempt could not be put into the queue."""
        if attempt != self.attempt or self.state != "queued":
            return NOTHING
        return self.fail(error, now)

    def on_claim(self, claim: Claim, now: float) -> Claimed:
        """The queue delivered the job again, and a replica asks whether to run it."""
        # 1. Asked again because our answer was lost: the same answer, as long as it still holds.
        if self.state not in ENDED and claim == self._granted and self.attempt == claim.attempt + 1:
            return Claimed(attempt=self.attempt, resume=self._resume())
        # 2. Not the current attempt, or nobody wants it: drop.
        if self.state in ENDED or claim.attempt != self.attempt or self.attempt >= MAX_ATTEMPT:
            return Claimed(drop=True)
        # 3. Another replica does well with it: drop. One that holds it itself would not ask, so what was heard of the
        #    asker is only that it waits for this answer.
        if self.replica and self.replica != claim.replica and now - self.heard < RECENT_S:
            return Claimed(drop=True)
        # 4. It is his, under a new number. The message stays the same one.
        self._forget_replica()
        self.attempt += 1
        self.moves.append("claim")
        self._granted = claim
        self._hold(claim.replica, "", now)
        return Claimed(attempt=self.attempt, resume=self._resume())

    # --- from the supervisor and the client ------------------------------------------------------------------

    def on_lost(self, replica: str, reason: str, now: float) -> Sequence[Action]:
        """This replica is dead, hung or has lost the job."""
        if self.state in ENDED or self.replica != replica:
            return NOTHING
        return self._move(reason, now)

    def on_unanswered(self, attempt: int, reason: str, now: float) -> Sequence[Action]:
        """The message of this attempt left the queue, and nobody answers for it."""
        if self.state != "queued" or self.attempt != attempt:
            return NOTHING
        return self._move(reason, now)

    def ask_again(self, now: float) -> Sequence[Action]:
        """Ask for whatever may have been missed, after a reconnect or a silence."""
        return self._ask(now) if self.state == "running" else NOTHING

    def keep_alive(self, waiting: Waiting, now: float) -> None:
        """Tell a reader who has nothing to read that the job lives."""
        if not self.outbox and self.state not in ENDED:
            self._emit(waiting, now)

    def cancel(self, now: float) -> Sequence[Action]:
        """The client is gone."""
        if self.state in ENDED:
            return NOTHING
        actions = self._end("cancelled", now)
        self.notify()
        return actions

    def fail(self, error: ApiError, now: float) -> Sequence[Action]:
        """End with an error that the client is told."""
        if self.state in ENDED:
            return NOTHING
        self.error = error
        self._emit(Broken(error), now)
        return self._end("failed", now)

    # --- inside ----------------------------------------------------------------------------------------------

    def _on_accepted(self, item: Accepted, worker: str) -> Sequence[Action]:
        if self.worker != worker:
            self.worker = worker
            self.on_hold(self)
        self.prompt_tokens = item.prompt_tokens
        self.fingerprint = item.fingerprint
        self._emit(Opened(item.prompt_tokens, item.fingerprint), self.heard)
        return NOTHING

    def _on_delta(self, delta: Delta, now: float) -> Sequence[Action]:
        if not 0 <= delta.choice < len(self.choices):
            return NOTHING
        choice = self.choices[delta.choice]
        held = len(choice.ids)
        if delta.start != held:
            if delta.start < held:
                return NOTHING  # a duplicate, from a replay
            choice.seen = max(choice.seen, delta.start + len(delta.ids))
            if len(self._early) < MAX_EARLY:
                self._early.append(delta)
            return self._ask(now)
        if choice.finish is not None:
            return NOTHING
        choice.ids += delta.ids
        choice.finish = delta.finish
        if choice.last_s and delta.ids:
            self.observe_gap((now - choice.last_s) / len(delta.ids))
        choice.last_s = self.last_token = now
        if not self.first_token and (delta.text or delta.extra):
            self.first_token = now
        if len(self.outbox) >= MAX_BUFFERED:
            return self.fail(SlowClient(len(self.outbox)), now)
        self._emit(delta, now)
        if self._done is not None and self._all_finished():
            return self._finish(now)
        return NOTHING

    def _on_embedded(self, item: Embedded, now: float) -> Sequence[Action]:
        """The vector of an input: a choice of one token, whose id says nothing."""
        if not 0 <= item.choice < len(self.choices) or self.choices[item.choice].finish is not None:
            return NOTHING
        choice = self.choices[item.choice]
        choice.ids, choice.finish = [0], "stop"
        self.first_token = self.first_token or now
        self.last_token = now
        self._emit(item, now)
        return self._finish(now) if self._done is not None and self._all_finished() else NOTHING

    def _on_done(self, item: Done, now: float) -> Sequence[Action]:
        self._done = item
        return self._finish(now) if self._all_finished() else self._ask(now)

    def _on_failed(self, item: Failed, now: float) -> Sequence[Action]:
        if item.kind in ("replica_lost", "shutting_down"):
            return self._move(item.kind, now)
        self.error = of_failure(item.kind, item.message, item.param, tokens=item.tokens, limit=item.limit)
        self._emit(Broken(self.error), now)
        return self._end("failed", now, told=True)

    def _finish(self, now: float) -> Sequence[Action]:
        done = self._done
        assert done is not None
        self.usage = done.usage
        self._emit(Finished(done.usage, done.timings), now)
        self.state, self.ended = "done", now
        return (SendConfirm(self.replica, self.attempt), _END)

    def _end(self, state: State, now: float, *, told: bool = False) -> Sequence[Action]:
        """`told`: the replica ended it itself, and takes the message out of the queue."""
        self.state, self.ended = state, now
        if told:
            return (_END,)
        actions: list[Action] = []
        if self.replica:
            actions.append(SendCancel(self.replica, self.attempt))
        if self.seq is not None:
            actions.append(DeleteMessage(self.seq))
        return (*actions, _END)

    def _move(self, reason: str, now: float) -> Sequence[Action]:
        """Publish the job again for another replica, with what was delivered."""
        # 1. Everything was delivered and only the summary is missing: done.
        if self._all_finished():
            usage = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.num_tokens)
            self._done = self._done or Done(self.id, self.attempt, usage, Timings())
            self._is_left = True
            ending = self._finish(now)
            return ending if self.seq is None else (DeleteMessage(self.seq), *ending)
        # 2. A replica that stops in order is no sign of a job that kills replicas.
        self.moves.append(reason)
        if reason != "shutting_down":
            self.losses.append(reason)
        if len(self.losses) - self._num_forgiven >= self.max_attempts or self.attempt >= MAX_ATTEMPT:
            return self.fail(ReplicaLost(self.attempt, self.losses), now)
        # 3. A new number; the old replica, should it still live, and the old message are void.
        actions: list[Action] = [SendCancel(self.replica, self.attempt)] if self.replica else []
        old = self.seq
        self._forget_replica()
        self.attempt += 1
        self.state, self.seq, self.published, self.delivered = "queued", None, 0.0, 0.0
        self.ahead, self.vanished, self.phase = None, 0, ""
        actions.append(Publish(self.attempt, reason))
        if old is not None:
            actions.append(DeleteMessage(old))
        return actions

    def _hold(self, replica: str, worker: str, now: float) -> None:
        self.replica, self.worker, self.state = replica, worker, "running"
        self.heard = now
        self.accepted = self.accepted or now
        self.on_hold(self)

    def _forget_replica(self) -> None:
        self.replica = self.worker = ""
        self._early.clear()
        self._fruitless = 0
        self._done = None
        for choice in self.choices:
            choice.seen = len(choice.ids)

    def _ask(self, now: float) -> Sequence[Action]:
        if self.state != "running":
            return NOTHING
        self.state, self.asked = "replaying", now
        return (AskReplay(self.replica, self.attempt, self.positions()),)

    def _is_replaying(self) -> bool:
        return self.state == "replaying"

    def _is_behind(self) -> bool:
        return any(len(choice.ids) < choice.seen for choice in self.choices)

    def _all_finished(self) -> bool:
        return all(choice.finish is not None for choice in self.choices)

    def _resume(self) -> list[ResumeChoice]:
        return [ResumeChoice(ids=list(choice.ids), finish=choice.finish) for choice in self.choices]

    def _emit(self, event: Event, now: float) -> None:
        self.outbox.append(event)
        self.emitted = now
        self.notify()
