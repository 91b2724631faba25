"""Scripts: embedding jobs at a replica's front."""

import pytest

from shared.messages import Accepted, Done, Embedded, Job, Prompt, Replay, ResumeChoice
from tests.support.letters import Letters
from worker.front.effects import Effects
from worker.front.embedding import Inputs, resolve_inputs
from worker.front.errors import RankFault, Unservable
from worker.front.jobs import JobTable
from worker.front.request import Limits, defaults
from worker.protocol import Output, Step

LIMITS = Limits(4, 10, (), defaults({}, Letters.generation))
IDS = [[1], [2, 3], [4]]


def a_job(resume: list[ResumeChoice] | None = None, share: str = "") -> Job:
    inputs = [Prompt(text="x") for _ in IDS]
    return Job(
        id="j",
        model="m",
        reply="r",
        owner="o",
        prompt=Prompt(),
        task="embed",
        inputs=inputs,
        resume=resume or [],
        share=share,
    )


def started(
    resume: list[ResumeChoice] | None = None, *, max_reply_bytes: int = 1 << 20, share: str = ""
) -> tuple[JobTable, Effects]:
    table, fx = JobTable(Letters(), max_reply_bytes=max_reply_bytes), Effects()
    run = table.take(a_job(resume, share), "ack", 0.0, fx)
    assert run is not None
    table.accept_inputs(run, resolve_inputs(run.job, IDS, LIMITS), "print", 0.0, fx)
    return table, fx


def step(table: JobTable, *indices: int) -> Effects:
    fx = Effects()
    table.on_step(
        Step(outputs=[Output("j#1", index, 0, [], "stop", vector=bytes([index])) for index in indices]), 1.0, fx
    )
    return fx


def test_life_of_a_job() -> None:
    table, fx = started()
    assert fx.batches["r"] == [Accepted("j", 1, 4, "print")]
    (submit,) = fx.submits
    assert ([choice.index for choice in submit.choices], submit.inputs) == ([0, 1, 2], IDS)
    assert table.num_choices == 1  # of the slots
    assert step(table, 1).batches["r"] == [Embedded("j", 1, 1, b"\1")]
    *vectors, done = step(table, 0, 2).batches["r"]
    assert vectors == [Embedded("j", 1, 0, b"\0"), Embedded("j", 1, 2, b"\2")]
    assert isinstance(done, Done)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (4, 0)


def test_an_embedding_takes_the_share_of_its_key_or_of_its_gateway() -> None:
    assert [started(share=share)[1].submits[0].owner for share in ("key", "")] == ["key", "o"]


def test_what_was_delivered_is_not_computed_again() -> None:
    _, fx = started([ResumeChoice([0], "stop"), ResumeChoice([]), ResumeChoice([0], "stop")])
    assert [choice.index for choice in fx.submits[0].choices] == [1]
    _, fx = started([ResumeChoice([0], "stop")] * 3)
    assert fx.submits == []
    assert isinstance(fx.batches["r"][-1], Done)


def test_what_the_owner_lacks_is_sent_again_as_far_as_it_fits() -> None:
    table, _ = started()
    step(table, 0, 1, 2)
    accepted, *vectors, done = table.replay(Replay("j", 1, [0, 1, 0])).items
    assert isinstance(accepted, Accepted)
    assert vectors == [Embedded("j", 1, 0, b"\0"), Embedded("j", 1, 2, b"\2")]
    assert isinstance(done, Done)
    table, _ = started(max_reply_bytes=100)
    step(table, 0, 1, 2)
    assert table.replay(Replay("j", 1, [0, 0, 0])).items[1:] == [Embedded("j", 1, 0, b"\0")]  # without the verdict


def test_a_second_vector_is_the_ranks_fault() -> None:
    table, _ = started()
    step(table, 1)
    with pytest.raises(RankFault):
        step(table, 1)


@pytest.mark.parametrize(
    ("ids", "kind", "param"),
    [
        ([], "invalid_request", "input"),
        ([[]], "invalid_request", "input"),
        ([[1], [10]], "invalid_request", "input[1]"),
        ([[1], [1] * 5], "context_length_exceeded", "input[1]"),
    ],
)
def test_what_cannot_run_is_refused_by_name(ids: list[list[int]], kind: str, param: str) -> None:
    with pytest.raises(Unservable) as refused:
        resolve_inputs(a_job(), ids, LIMITS)
    assert (refused.value.kind, refused.value.param) == (kind, param)


def test_an_input_may_fill_the_context() -> None:
    assert resolve_inputs(a_job(), [[1] * 4], LIMITS) == Inputs([[1] * 4], [0])
