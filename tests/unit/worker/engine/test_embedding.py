"""The loop of an embedding model: turns, batches, refusals. The encoder is a stub."""

import pytest

from worker.engine.embedding import EmbeddingEngine
from worker.engine.errors import DeviceLost
from worker.protocol import Choice, Output, Sample, Step, Submit


class Stub:
    """Vectors that name their input; the id 99 cannot be computed."""

    vocab_size = 100

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.lost = False

    def embed(self, batch: list[list[int]]) -> list[bytes]:
        if self.lost:
            raise DeviceLost
        if any(99 in ids for ids in batch):
            raise ArithmeticError("not finite")
        self.batches.append(batch)
        return [bytes(ids) for ids in batch]


def a_job(
    key: str, *inputs: list[int], wanted: list[int] | None = None, batch_class: bool = False, owner: str = ""
) -> Submit:
    choices = [Choice(index) for index in (range(len(inputs)) if wanted is None else wanted)]
    sample = Sample(seed=0, max_tokens=1)
    return Submit(
        key=key,
        prompt=[],
        inputs=list(inputs),
        choices=choices,
        sample=sample,
        batch_class=batch_class,
        owner=owner,
    )


def run(engine: EmbeddingEngine) -> list[Step]:
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    return steps


def vectors(steps: list[Step]) -> dict[tuple[str, int], bytes | None]:
    outputs: list[Output] = [output for step in steps for output in step.outputs]
    assert all((output.start, output.ids, output.finish) == (0, [], "stop") for output in outputs)
    found = {(output.key, output.choice): output.vector for output in outputs}
    assert len(found) == len(outputs)
    return found


def test_every_input_gets_its_vector() -> None:
    encoder = Stub()
    engine = EmbeddingEngine(encoder, step_tokens=16, context_limit=8)
    engine.submit(a_job("a", [1, 2], [3], [4, 5, 6]))
    assert vectors(run(engine)) == {("a", 0): b"\1\2", ("a", 1): b"\3", ("a", 2): b"\4\5\6"}
    assert encoder.batches == [[[4, 5, 6], [1, 2], [3]]]  # the longest first


def test_only_what_is_wanted_is_computed() -> None:
    engine = EmbeddingEngine(Stub(), step_tokens=16, context_limit=8)
    engine.submit(a_job("a", [1], [2], [3], wanted=[1]))
    assert vectors(run(engine)) == {("a", 1): b"\2"}


def test_a_step_holds_what_fits_when_padded() -> None:
    encoder = Stub()
    engine = EmbeddingEngine(encoder, step_tokens=6, context_limit=8)
    engine.submit(a_job("a", [1] * 8, [2] * 3, [3] * 2, [4], [5]))
    steps = run(engine)
    assert [len(batch) for batch in encoder.batches] == [1, 2, 2]  # one that is longer than a step goes alone
    assert len(vectors(steps)) == 5


def test_jobs_take_turns_and_batch_jobs_wait() -> None:
    encoder = Stub()
    engine = EmbeddingEngine(encoder, step_tokens=4, context_limit=8)
    engine.submit(a_job("bulk", [7], [7], batch_class=True))
    engine.submit(a_job("a", *[[1]] * 6))
    engine.submit(a_job("b", [2]))
    steps = run(engine)
    assert encoder.batches == [[[1], [2], [1], [1]], [[1], [1], [1], [7]], [[7]]]
    assert [step.waiting for step in steps] == [2, 1, 0]


def test_owners_take_turns_by_tokens_however_many_jobs_they_have() -> None:
    encoder = Stub()
    engine = EmbeddingEngine(encoder, step_tokens=4, context_limit=8)
    for key in ("a1", "a2", "a3"):
        engine.submit(a_job(key, [1], [1], owner="a"))
    engine.submit(a_job("b", [2], [2], owner="b"))
    run(engine)
    assert encoder.batches == [[[1], [2], [1], [2]], [[1], [1], [1], [1]]]
    encoder.batches.clear()
    engine.submit(a_job("a", *[[1, 1]] * 3, owner="a"))
    engine.submit(a_job("b", *[[2]] * 4, owner="b"))
    run(engine)
    assert encoder.batches == [[[1, 1], [2]], [[2], [1, 1]], [[2], [2]], [[1, 1]]]


def test_an_owner_who_comes_back_starts_with_those_who_are_here() -> None:
    encoder = Stub()
    engine = EmbeddingEngine(encoder, step_tokens=1, context_limit=8)
    engine.submit(a_job("a", *[[1]] * 4, owner="a"))
    engine.step()
    engine.step()
    engine.submit(a_job("b", *[[2]] * 2, owner="b"))
    run(engine)
    assert [batch[0][0] for batch in encoder.batches] == [1, 1, 2, 1, 2, 1]
    engine.submit(a_job("c", [3], [3], owner="c"))
    engine.submit(a_job("d", [4], owner="d"))
    engine.abort([("c", 1), ("d", -1)])
    assert [step.waiting for step in run(engine)] == [0]


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (a_job("a"), "invalid_request"),
        (a_job("a", []), "invalid_request"),
        (a_job("a", [1], wanted=[1]), "invalid_request"),
        (a_job("a", [100]), "invalid_request"),
        (a_job("a", [-1]), "invalid_request"),
        (a_job("a", [1], [1] * 9), "context_length_exceeded"),
        (a_job("a", *[[1]] * 5), "capacity"),
    ],
)
def test_what_cannot_run_is_refused(job: Submit, kind: str) -> None:
    engine = EmbeddingEngine(Stub(), step_tokens=16, context_limit=8, max_waiting=4)
    engine.submit(job)
    (step,) = run(engine)
    assert ([refused.kind for refused in step.refused], step.outputs) == ([kind], [])


def test_a_second_job_of_a_key_ends_both() -> None:
    engine = EmbeddingEngine(Stub(), step_tokens=16, context_limit=8)
    engine.submit(a_job("a", [1]))
    engine.submit(a_job("a", [2]))
    (step,) = run(engine)
    assert (len(step.refused), step.outputs) == (1, [])


def test_an_input_that_fails_takes_only_its_job_along() -> None:
    engine = EmbeddingEngine(Stub(), step_tokens=64, context_limit=8)
    engine.submit(a_job("bad", [99], [1]))
    engine.submit(a_job("good", [2], [3]))
    steps = run(engine)
    assert [(refused.key, refused.kind) for step in steps for refused in step.refused] == [("bad", "engine_error")]
    assert {key for key, _ in vectors(steps)} == {"good"}


def test_a_lost_device_ends_the_rank() -> None:
    encoder = Stub()
    encoder.lost = True
    engine = EmbeddingEngine(encoder, step_tokens=64, context_limit=8)
    engine.submit(a_job("a", [1]))
    with pytest.raises(DeviceLost):
        engine.step()


def test_an_aborted_job_says_nothing_more() -> None:
    engine = EmbeddingEngine(Stub(), step_tokens=1, context_limit=8)
    engine.submit(a_job("a", [1], [2], [3]))
    engine.step()
    engine.abort([("a", 1)])
    assert engine.num_waiting == 1
    engine.abort([("a", -1)])
    assert not engine.has_work
