"""Jobs whose answers must match something, from the queue to the rank."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from shared import messages
from shared.messages import Constraint, Failed, Job, Prompt, Sampling
from tests.support.letters import Letters
from worker.front.effects import Effects
from worker.front.intake import Intake
from worker.front.jobs import JobTable
from worker.front.request import Limits
from worker.text.errors import PromptError, PromptTooLong

ACK = "$JS.ACK.JOBS.c.1.1.1.1.0"


DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": None}


class Ready:
    fingerprint = "f"
    limits = Limits(100, 500, (0,), DEFAULTS)


class Constraining(Letters):
    """Takes any constraint but the regular expression "bad"."""

    def constrain(self, prompt: Prompt, constraint: Constraint | None, prompt_ids: list[int]) -> Any:
        if constraint is None:
            return None
        ready: Future[str] = Future()
        if constraint.value == "bad":
            ready.set_exception(PromptError("it is bad", "regex"))
        else:
            ready.set_result(f"start: /{constraint.value}/")
        return ready


async def take(job: Job) -> tuple[list[Any], list[Any], bool]:
    """Submits and items that a job brings about, and whether taking it waits for nobody."""
    done = Effects()

    def apply(fx: Effects) -> None:
        done.submits += fx.submits
        for reply, items in fx.batches.items():
            for item in items:
                done.emit(reply, item)

    text = Constraining()
    table = JobTable(text, max_reply_bytes=1 << 20)
    with ThreadPoolExecutor(1) as executor:
        intake = Intake(
            replica="r", model="m", bus=None, table=table, text=text, apply=apply, ready=Ready, executor=executor
        )  # type: ignore[arg-type]
        begun = intake.begin(messages.encode(job), ACK, done)
        assert begun is not None
        run, given = begun
        await intake.finish(run, given.count, 100)
    return done.submits, done.batches.get("reply", []), intake.is_short(1, 100, run.job if run.verdict else job)


def make(constraint: Constraint | None, **sampling: Any) -> Job:
    return Job(
        id="j", model="m", reply="reply", prompt=Prompt(text="hi"), sampling=Sampling(**sampling), constraint=constraint
    )


async def test_the_grammar_goes_to_the_rank() -> None:
    submits, _, is_short = await take(make(Constraint(kind="regex", value="a+"), ignore_eos=True))
    assert submits[0].grammar == "start: /a+/"
    assert submits[0].sample.stop_ids == [0]  # what ends with its grammar is not to run past its end
    assert not is_short


async def test_free_jobs_have_none() -> None:
    submits, _, is_short = await take(make(None, ignore_eos=True))
    assert (submits[0].grammar, submits[0].sample.stop_ids, is_short) == ("", [], True)


async def test_a_constraint_that_cannot_be_kept_fails_the_job_and_names_its_field() -> None:
    submits, items, _ = await take(make(Constraint(kind="regex", value="bad")))
    assert not submits
    (failed,) = [item for item in items if isinstance(item, Failed)]
    assert (failed.kind, failed.message, failed.param) == ("invalid_request", "it is bad", "regex")


@pytest.mark.parametrize("choice", ["required", "=f"])
def test_a_required_call_may_take_time(choice: str) -> None:
    job = Job(id="j", model="m", reply="r", prompt=Prompt(messages=[], tools=[{}], tool_choice=choice))
    assert not Intake.is_short(None, 1, 100, job)  # type: ignore[arg-type]


class Endless(Letters):
    """Every text is far too long."""

    def encode(self, prompt: Prompt, *, limit: int | None = None, reserve: int = 1) -> list[int]:
        raise PromptTooLong(9000, limit or 0, "prompt")


async def test_a_text_that_is_far_too_long_is_refused_in_the_usual_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Constraining", Endless)
    _, items, _ = await take(make(None))
    (failed,) = items
    assert (failed.kind, failed.param, failed.tokens, failed.limit) == ("context_length_exceeded", "prompt", 9000, 100)
    assert "maximum context length is 100 tokens" in failed.message
