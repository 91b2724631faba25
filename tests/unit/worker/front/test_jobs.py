"""Scripts: what happens to jobs, and what the front is told to do about it."""

from typing import Any

import pytest

from shared.messages import (
    Accepted,
    Claimed,
    Delta,
    Done,
    Extra,
    Failed,
    Item,
    Job,
    Prompt,
    Replay,
    ResumeChoice,
    Sampling,
    Working,
)
from tests.support.letters import Letters, ids
from worker.front import jobs
from worker.front.effects import ACK, NAK, PROGRESS, TERM, Effects
from worker.front.errors import RankFault
from worker.front.jobs import JobTable
from worker.front.request import Limits, defaults, resolve
from worker.front.run import Run
from worker.protocol import Output, Prefilling, Refused, Step

LIMITS = Limits(100, 256, (0,), defaults({}, Letters.generation))


def job(id: str = "j", *, attempt: int = 1, resume: list[ResumeChoice] | None = None, **fields: Any) -> Job:
    sampling = {name: fields.pop(name) for name in list(fields) if name in Sampling.__struct_fields__}
    values: dict[str, Any] = {"owner": "owner", "reply": "reply", "model": "m", "prompt": Prompt(text="hi")}
    return Job(id=id, attempt=attempt, sampling=Sampling(**sampling), resume=resume or [], **(values | fields))


class Table(JobTable):
    """With shorthands for the tests."""

    def __init__(self, **options: Any) -> None:
        self.unix = 1000.0
        super().__init__(Letters(), max_reply_bytes=1 << 20, wall=lambda: self.unix, **options)

    def start(self, job: Job, now: float = 0.0, ack: str = "ack") -> tuple[Run, Effects]:
        fx = Effects()
        run = self.take(job, ack, now, fx)
        assert run is not None
        self.accept(run, resolve(job, ids("hi"), LIMITS), "print", now, fx)
        self.prepare(run)
        return run, fx

    def step(self, *outputs: Output, now: float = 1.0, **fields: Any) -> Effects:
        fx = Effects()
        self.on_step(Step(outputs=list(outputs), **fields), now, fx)
        return fx

    def at(self, now: float) -> Effects:
        fx = Effects()
        self.tick(now, fx)
        return fx


def out(text: str, start: int = 0, finish: Any = None, *, key: str = "j#1", choice: int = 0, **fields: Any) -> Output:
    return Output(key, choice, start, ids(text), finish, **fields)


def items(fx: Effects) -> list[Item]:
    return fx.batches.get("reply", [])


def test_life_of_a_job() -> None:
    table = Table()
    table.unix = 1003.0
    run, fx = table.start(job(max_tokens=5, published_s=1001.0), now=10.0)
    assert items(fx) == [Accepted("j", 1, 2, "print")]
    (submit,) = fx.submits
    assert (submit.key, submit.prompt, submit.choices[0].index, submit.sample.max_tokens) == ("j#1", ids("hi"), 0, 5)
    assert run.job.prompt == Prompt()  # not kept twice

    fx = table.step(out("ab", cached=1), now=11.0)
    assert items(fx) == [Delta("j", 1, 0, 0, ids("ab"), "ab")]
    fx = table.step(out("cde", 2, "length"), now=12.5)
    delta, done = items(fx)
    assert delta == Delta("j", 1, 0, 2, ids("cde"), "cde", "length")
    assert isinstance(done, Done)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cached_tokens) == (2, 5, 1)
    assert (done.timings.queue_s, done.timings.prefill_s, done.timings.decode_s) == (2.0, 1.0, 1.5)
    assert fx.answers == [] and table.num_unconfirmed == 1 and not table.has_work

    fx = Effects()
    table.confirm("j", 1, 13.0, fx)
    assert fx.answers == [("ack", ACK)] and table.num_unconfirmed == 0
    fx = Effects()
    table.confirm("j", 1, 13.0, fx)
    assert fx.answers == []


def test_a_job_without_owner_is_acked_when_done() -> None:
    table = Table()
    table.start(job(owner=None))
    assert table.step(out("a", 0, "stop")).answers == [("ack", ACK)]


def test_choices_end_one_by_one() -> None:
    table = Table()
    table.start(job(n=2))
    assert table.num_choices == 2
    fx = table.step(out("a", 0, "stop"), out("bc", choice=1))
    assert [type(item) for item in items(fx)] == [Delta, Delta] and table.num_choices == 1
    assert isinstance(items(table.step(out("d", 2, "length", choice=1)))[-1], Done)


def test_a_stop_string_aborts_the_choice_and_cuts_its_ids() -> None:
    table = Table()
    table.start(job(stop=["cd"]))
    fx = table.step(out("abcdef"))
    delta, done = items(fx)
    assert delta == Delta("j", 1, 0, 0, ids("abcd"), "ab", "stop", Extra(stopped="cd")) and isinstance(done, Done)
    assert fx.aborts == [("j#1", 0)]
    assert items(table.step(out("gh", 6))) == []  # the rank was already at it


def test_a_stop_id_counts_but_makes_no_text() -> None:
    table = Table()
    table.start(job())
    (delta, done) = items(table.step(out("ab\0", 0, "stop")))
    assert isinstance(delta, Delta) and (delta.ids, delta.text, delta.finish) == (ids("ab\0"), "ab", "stop")
    assert isinstance(done, Done) and done.usage.completion_tokens == 3


def test_resume_runs_only_what_is_unfinished() -> None:
    table = Table()
    resume = [ResumeChoice(ids("abc")), ResumeChoice(ids("xy"), "stop"), ResumeChoice(ids("lm\0")), ResumeChoice([])]
    _, fx = table.start(job(n=4, attempt=2, resume=resume, max_tokens=9))
    assert [(choice.index, choice.resume) for choice in fx.submits[0].choices] == [(0, ids("abc")), (3, [])]
    assert items(fx)[1:] == [Delta("j", 2, 2, 3, [], "", "stop")]  # its end was lost, and shows in its ids
    assert items(table.step(out("d", 3, key="j#2"))) == [Delta("j", 2, 0, 3, ids("d"), "d")]


def test_a_job_whose_choices_are_all_over_is_done_at_once() -> None:
    table = Table()
    _, fx = table.start(job(resume=[ResumeChoice(ids("abc"), "stop")], attempt=3))
    accepted, done = items(fx)
    assert isinstance(accepted, Accepted) and isinstance(done, Done) and done.usage.completion_tokens == 3
    assert not fx.submits
    _, fx = table.start(job("k", resume=[ResumeChoice(ids("abc"))], max_tokens=3))
    assert items(fx)[1] == Delta("k", 1, 0, 3, [], "", "length")


def test_steps_that_do_not_continue_are_a_fault_of_the_rank() -> None:
    table = Table()
    table.start(job())
    with pytest.raises(RankFault):
        table.step(out("c", 2))
    with pytest.raises(RankFault):
        table.step(out("c", 0, choice=1))


def test_what_the_rank_refuses_fails() -> None:
    table = Table()
    table.start(job())
    fx = table.step(refused=[Refused("j#1", "capacity", "too long"), Refused("stranger", "capacity", "?")])
    assert items(fx) == [Failed("j", 1, "capacity", "too long")]
    assert fx.answers == [("ack", TERM)] and fx.aborts == []


def test_a_redelivery_of_a_running_job_only_changes_how_to_answer() -> None:
    table = Table()
    table.start(job())
    fx = Effects()
    assert table.take(job(), "second", 2.0, fx) is None
    assert fx.answers == [("second", PROGRESS)] and not fx.submits
    table.step(out("a", 0, "stop"))
    fx = Effects()
    table.confirm("j", 1, 3.0, fx)
    assert fx.answers == [("second", ACK)]
    fx = Effects()
    assert table.take(job(), "third", 4.0, fx) is None  # the ack was lost
    assert fx.answers == [("third", ACK)]


def test_a_higher_attempt_voids_the_lower_and_a_lower_is_void() -> None:
    table = Table()
    table.start(job())
    fx = Effects()
    assert table.take(job(attempt=2), "second", 1.0, fx) is not None
    assert fx.answers == [("ack", TERM)] and fx.aborts == [("j#1", -1)]
    fx = Effects()
    assert table.take(job(), "late", 1.0, fx) is None
    assert fx.answers == [("late", TERM)]


@pytest.mark.parametrize("attempt", [1, 2])
def test_cancel(attempt: int) -> None:
    table = Table()
    run, _ = table.start(job())
    fx = Effects()
    table.cancel("j", attempt, fx)
    assert fx.answers == [("ack", TERM)] and fx.aborts == [("j#1", -1)] and items(fx) == []
    assert run.state == "closed" and table.get("j") is None


def test_cancel_of_a_lower_attempt_means_not_this_one() -> None:
    table = Table()
    table.start(job(attempt=2))
    fx = Effects()
    table.cancel("j", 1, fx)
    assert fx.answers == [] and table.num_running == 1


def test_when_the_rank_dies_owners_hear_of_it_and_the_queue_keeps_what_nobody_owns() -> None:
    table = Table()
    table.start(job("a"), ack="A")
    table.start(job("b", owner=None), ack="B")
    adopted, _ = table.start(job("c", on_owner_lost="adopt"), ack="C")
    table.owner_lost(adopted, 1.0, Effects())
    table.start(job("d"), ack="D")
    table.step(out("x", 0, "stop", key="d#1"))
    fx = Effects()
    table.rank_died("boom", 2.0, fx)
    assert items(fx) == [Failed("a", 1, "replica_lost", "boom")]
    assert sorted(fx.answers) == [("A", TERM), ("B", NAK), ("C", NAK)]  # d is done already
    assert fx.aborts == [] and table.num_running == 0 and table.num_unconfirmed == 1


def test_an_owner_is_lost() -> None:
    table = Table()
    dropped, _ = table.start(job("a"), ack="A")
    adopted, _ = table.start(job("b", on_owner_lost="adopt"), ack="B")
    done, _ = table.start(job("c", on_owner_lost="adopt"), ack="C")
    table.step(out("x", 0, "stop", key="c#1"))
    fx = Effects()
    for run in table.of_reply("reply"):
        table.owner_lost(run, 2.0, fx)
    assert fx.answers == [("A", TERM), ("C", ACK)] and fx.aborts == [("a#1", -1)]
    assert (dropped.state, adopted.state, done.state) == ("closed", "running", "closed")
    assert table.of_reply("reply") == []
    assert table.step(out("y", 0, "stop", key="b#1")).answers == [("B", ACK)]


def test_progress_and_signs_of_life() -> None:
    table = Table()
    table.start(job())
    assert table.at(0.9).answers == []
    assert items(table.at(1.0)) == [Working("j", 1, "queued", 0, 2)]
    fx = table.at(1.6)
    assert fx.answers == [("ack", PROGRESS)] and items(fx) == []
    table.step(prefilling=[Prefilling("j#1", 1, 2)])
    assert items(table.at(2.1)) == [Working("j", 1, "prefill", 1, 2)]
    table.step(out("a"))
    fx = table.at(3.3)
    assert fx.answers == [("ack", PROGRESS)] and items(fx) == []


def test_done_is_repeated_until_it_is_given_up() -> None:
    table = Table()
    table.start(job())
    table.step(out("a", 0, "stop"), now=1.0)
    assert items(table.at(5.9)) == []
    assert isinstance(items(table.at(6.0))[0], Done)
    assert items(table.at(7.0)) == []
    fx = table.at(1.0 + jobs.CONFIRM_GIVE_UP_S)
    assert fx.answers[-1] == ("ack", ACK)


def test_a_deadline_ends_a_running_job() -> None:
    table = Table()
    table.start(job(deadline_s=1001.0))
    assert items(table.at(0.1)) == []
    table.unix = 1001.0
    fx = table.at(0.2)
    assert isinstance(items(fx)[0], Failed) and fx.answers == [("ack", TERM)] and fx.aborts == [("j#1", -1)]


def test_replay() -> None:
    table = Table()
    table.start(job())
    for position, letter in enumerate("abcd"):
        table.step(out(letter, position))
    replayed = table.replay(Replay("j", 1, [2]))
    assert replayed.items == [Accepted("j", 1, 2, "print"), Delta("j", 1, 0, 2, ids("cd"), "cd")]
    table.step(out("e", 4, "stop"))
    _, delta, done = table.replay(Replay("j", 1, [])).items
    assert isinstance(delta, Delta) and (delta.text, delta.finish) == ("abcde", "stop") and isinstance(done, Done)
    for unknown in (Replay("j", 2, [0]), Replay("k", 1, [0]), Replay("j", 1, [9])):
        assert table.replay(unknown).gone


def test_a_replay_that_is_too_large_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REPLAY_DELTA_TOKENS", 10)
    table = Table()
    table._max_reply_bytes = 200
    table.start(job(max_tokens=90))
    for position in range(90):
        table.step(out("x", position, "length" if position == 89 else None))
    held = 0
    for _ in range(90):
        replayed = table.replay(Replay("j", 1, [held]))
        for item in replayed.items:
            if isinstance(item, Delta):
                assert item.start == held
                held += len(item.ids)
        if isinstance(replayed.items[-1], Done):
            break
    else:
        pytest.fail("the replay never ends")
    assert held == 90


def test_closed_jobs_are_kept_a_while_and_within_bounds() -> None:
    table = Table(replay_bytes=20_000)
    table.start(job("old", owner=None))
    table.step(out("a", 0, "stop", key="old#1"))
    table.at(60.0)
    assert not table.replay(Replay("old", 1, [0])).gone
    table.at(61.0)
    assert table.replay(Replay("old", 1, [0])).gone and table.kept_bytes == 0
    for number in range(30):
        table.start(job(f"{number}", owner=None))
        table.step(out("a", 0, "stop", key=f"{number}#1"), now=62.0)
    table.at(62.0)
    assert 0 < table.kept_bytes <= 20_000
    assert table.replay(Replay("0", 1, [0])).gone and not table.replay(Replay("29", 1, [0])).gone


def test_shutting_down_hands_back() -> None:
    table = Table()
    table.start(job("a"), ack="A")
    table.start(job("b", owner=None), ack="B")
    table.start(job("c"), ack="C")
    table.step(out("x", 0, "stop", key="c#1"))
    taken = table.take(job("d"), "D", 1.0, Effects())
    fx = Effects()
    table.close_all(2.0, fx)
    assert [(item.job, item.kind) for item in items(fx) if isinstance(item, Failed)] == [
        ("a", "shutting_down"),
        ("d", "shutting_down"),
    ]
    assert fx.answers == [("A", TERM), ("B", NAK), ("C", ACK), ("D", TERM)]
    assert taken is not None and taken.state == "closed"


def test_a_claimed_job_runs_under_its_new_number() -> None:
    table = Table()
    fx = Effects()
    run = table.take(job(), "ack", 0.0, fx)
    assert run is not None
    table.renumber(run, Claimed(attempt=3, resume=[ResumeChoice(ids("ab"))]))
    table.accept(run, resolve(run.job, ids("hi"), LIMITS), "", 0.0, fx)
    assert fx.submits[0].key == "j#3" and fx.submits[0].choices[0].resume == ids("ab")


def test_every_delivery_is_answered_once() -> None:
    table = Table()
    answers: list[tuple[str, bytes]] = []
    for number, end in enumerate(("confirm", "cancel", "die", "refuse")):
        key = f"{number}#1"
        table.start(job(str(number)), ack=f"A{number}")
        fx = Effects()
        if end == "confirm":
            answers += table.step(out("a", 0, "stop", key=key)).answers
            table.confirm("0", 1, 2.0, fx)
        elif end == "cancel":
            table.cancel("1", 1, fx)
        elif end == "refuse":
            answers += table.step(refused=[Refused(key, "engine_error", "")]).answers
        else:
            table.rank_died("", 2.0, fx)
        answers += fx.answers
        for late in (table.cancel, lambda j, a, fx: table.confirm(j, a, 3.0, fx)):
            late(str(number), 1, fx := Effects())
            assert fx.answers == []
    assert [ack for ack, _ in answers] == ["A0", "A1", "A2", "A3"]


def test_cached_tokens_are_those_every_choice_found() -> None:
    table = Table()
    table.start(job(n=2))
    table.step(out("a", cached=0), out("b", choice=1, cached=2))
    (_, _, done) = items(table.step(out("a", 1, "stop"), out("b", 1, "stop", choice=1)))
    assert isinstance(done, Done) and done.usage.cached_tokens == 0


def test_an_answer_that_cannot_be_turned_into_text_ends_alone() -> None:
    table = Table()
    run, _ = table.start(job())
    table.start(job("k"), ack="other")

    def fail(ids: list[int]) -> Any:
        raise IndexError("no such mark")

    run.choices[0]._stream.feed = fail  # type: ignore[union-attr, method-assign]
    fx = table.step(out("a"), out("b", key="k#1"))
    failed, delta = items(fx)
    assert isinstance(failed, Failed) and (failed.job, failed.kind) == ("j", "engine_error")
    assert isinstance(delta, Delta) and delta.text == "b"
    assert fx.aborts == [("j#1", -1)] and fx.answers == [("ack", TERM)]


def test_a_job_that_nobody_supervises_is_not_handed_back_for_ever() -> None:
    table = Table()
    run, _ = table.start(job(owner=None))
    run.num_deliveries = jobs.MAX_DELIVERIES
    fx = Effects()
    table.rank_died("the rank died", 1.0, fx)
    (failed,) = items(fx)
    assert isinstance(failed, Failed) and fx.answers == [("ack", TERM)]


def test_a_front_that_breaks_says_so() -> None:
    table = Table()
    table.start(job())
    fx = Effects()
    table.close_all(1.0, fx, broken="it broke")
    (failed,) = items(fx)
    assert isinstance(failed, Failed) and (failed.kind, failed.message) == ("replica_lost", "it broke")
