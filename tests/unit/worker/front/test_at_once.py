"""A short job goes from its message to the rank without waiting for anything."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared import messages
from shared.messages import Failed, Job, Prompt, ResumeChoice, Sampling
from tests.support.letters import Letters, ids
from worker.front.effects import TERM, Effects
from worker.front.intake import Intake
from worker.front.jobs import JobTable
from worker.front.request import Limits, defaults, resolve
from worker.front.run import Run
from worker.protocol import Output, Step

ACK = "$JS.ACK.JOBS.c.1.1.1.1.0"


class Ready:
    fingerprint = "f"
    limits = Limits(100, 256, (0,), defaults({}, Letters.generation))


class Told(Letters):
    """Says when it is asked for a stream of text."""

    def __init__(self, events: list[str], *, is_broken: bool = False) -> None:
        super().__init__()
        self._events = events
        self._is_broken = is_broken

    def stream(self, prompt: Prompt, **fields: Any) -> Any:
        self._events.append("stream")
        if self._is_broken:
            raise RuntimeError("no text today")
        return super().stream(prompt, **fields)


class Bench:
    """An intake, its table, and what came of them in order."""

    def __init__(self, *, is_broken: bool = False) -> None:
        self.events: list[str] = []
        self.done = Effects()
        text = Told(self.events, is_broken=is_broken)
        self.table = JobTable(text, max_reply_bytes=1 << 20)
        self.intake = Intake(
            replica="r",
            model="m",
            bus=None,  # type: ignore[arg-type]
            table=self.table,
            text=text,
            apply=self._apply,
            ready=Ready,  # type: ignore[arg-type]
            executor=ThreadPoolExecutor(1),
        )

    def take(self, **fields: Any) -> Run:
        values: dict[str, Any] = {"id": "j", "model": "m", "reply": "reply", "prompt": Prompt(text="hi")}
        job = Job(**(values | fields))
        begun = self.intake.begin(messages.encode(job), ACK, Effects())
        assert begun is not None
        self.intake.finish_at_once(begun[0])
        return begun[0]

    def _apply(self, fx: Effects) -> None:
        self.events += ["submit" for _ in fx.submits] + ["abort" for _ in fx.aborts]
        self.done.answers += fx.answers
        for reply, items in fx.batches.items():
            for item in items:
                self.done.emit(reply, item)


def test_the_rank_has_the_job_before_its_text_is_made_ready() -> None:
    bench = Bench()
    run = bench.take(sampling=Sampling(n=2))
    assert bench.events == ["submit", "stream", "stream"]
    assert (run.state, len(run.choices)) == ("running", 2)
    assert run.job.prompt == Prompt()  # only a job that waits needs it


def test_what_an_earlier_attempt_delivered_is_taken_in_before() -> None:
    bench = Bench()
    bench.take(resume=[ResumeChoice(ids("ab"))])
    assert bench.events == ["stream", "submit"]


def test_text_that_cannot_be_made_ends_the_job_in_the_rank_too() -> None:
    bench = Bench(is_broken=True)
    run = bench.take()
    assert bench.events == ["submit", "stream", "abort"]
    failed = bench.done.batches["reply"][-1]
    assert isinstance(failed, Failed) and failed.kind == "engine_error" and "no text today" in failed.message
    assert (run.state, bench.done.answers) == ("closed", [(ACK, TERM)])


def test_a_step_finds_its_job_ready_in_any_case() -> None:
    bench = Bench()
    fx = Effects()
    run = bench.table.take(Job(id="k", model="m", reply="reply", prompt=Prompt(text="hi")), ACK, 0.0, fx)
    assert run is not None
    bench.table.accept(run, resolve(run.job, ids("hi"), Ready.limits), "f", 0.0, fx)
    assert run.choices == []
    bench.table.on_step(Step(outputs=[Output("k#1", 0, 0, ids("a"), None)]), 1.0, fx)
    assert run.choices[0].position == 1


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "other"}, "model_not_found"),
        ({"task": "embed"}, "invalid_request"),
        ({"deadline_s": 1.0}, "deadline_exceeded"),
        ({"prompt": Prompt(text="h" * 200)}, "context_length_exceeded"),
        ({"sampling": Sampling(n=0)}, "invalid_request"),
    ],
)
def test_what_cannot_run_is_refused_at_once(fields: dict[str, Any], kind: str) -> None:
    bench = Bench()
    run = bench.take(**fields)
    (failed,) = bench.done.batches["reply"]
    assert isinstance(failed, Failed) and failed.kind == kind
    assert (run.state, bench.events) == ("closed", [])
