"""Scripts for the state machine of a job: what comes in, what must go out."""

import pytest

from gateway.errors import DeadlineExceeded, Unavailable
from gateway.flight import (
    MAX_BUFFERED,
    AskReplay,
    DeleteMessage,
    End,
    Flight,
    Publish,
    SendCancel,
    SendConfirm,
)
from gateway.request import Broken, Event, Finished, Opened, Waiting
from shared.messages import (
    Accepted,
    Claim,
    Claimed,
    Delta,
    Done,
    Failed,
    Job,
    Prompt,
    Replayed,
    ResumeChoice,
    Sampling,
    Timings,
    Usage,
    Working,
)


def a_flight(n: int = 1, max_attempts: int = 4) -> Flight:
    job = Job(id="j", model="m", reply="r", prompt=Prompt(text="x"), sampling=Sampling(n=n))
    return Flight(job, max_attempts=max_attempts, deadline=100.0, now=0.0)


def accepted(attempt: int = 1) -> Accepted:
    return Accepted("j", attempt, 5, "fp")


def delta(start: int, attempt: int = 1, *, choice: int = 0, finish: str | None = None, size: int = 1) -> Delta:
    ids = list(range(start, start + size))
    return Delta("j", attempt, choice, start, ids, "".join(f" t{one}" for one in ids), finish)


def done(attempt: int = 1) -> Done:
    return Done("j", attempt, Usage(5, 3), Timings())


def running(n: int = 1) -> Flight:
    """A flight whose first attempt, message 11, is held by replica A with one token."""
    flight = a_flight(n)
    flight.on_published(1, 11, 0.1)
    flight.on_item("A", "w", accepted(), 0.2)
    for choice in range(n):
        flight.on_item("A", "w", delta(0, choice=choice), 0.3)
    flight.take()
    return flight


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_job_from_publication_to_confirmation() -> None:
    flight = a_flight()
    assert flight.on_published(1, 11, 0.1) == ()
    assert flight.on_item("A", "w", accepted(), 0.2) == ()
    assert (flight.state, flight.replica, flight.worker) == ("running", "A", "w")
    for item in (delta(0), delta(1), delta(2, finish="stop")):
        assert flight.on_item("A", "w", item, 0.3) == ()
    assert flight.on_item("A", "w", done(), 0.4) == (SendConfirm("A", 1), End())
    events = flight.take()
    assert events[0] == Opened(5, "fp")
    assert text(events) == " t0 t1 t2"
    assert events[-1] == Finished(Usage(5, 3), Timings())
    assert flight.state == "done"


def test_the_moments_are_kept() -> None:
    flight = a_flight()
    flight.on_item("A", "w", accepted(), 0.2)
    flight.on_item("A", "w", Delta("j", 1, 0, 0, [7]), 0.5)  # half a character: no text yet
    flight.on_item("A", "w", delta(1), 0.7)
    assert (flight.accepted, flight.first_token, flight.last_token) == (0.2, 0.7, 0.7)


def test_gaps_between_tokens_are_observed_per_choice() -> None:
    flight, gaps = a_flight(n=2), list[float]()
    flight.observe_gap = gaps.append
    flight.on_item("A", "w", delta(0, choice=0), 1.0)
    flight.on_item("A", "w", delta(0, choice=1), 1.5)
    flight.on_item("A", "w", delta(1, choice=0, size=2), 3.0)
    assert gaps == [1.0]


# --- who holds the attempt -----------------------------------------------------------------------------------


def test_a_second_replica_of_the_same_attempt_is_cancelled() -> None:
    flight = running()
    assert flight.on_item("B", "w", accepted(), 0.5) == (SendCancel("B", 1),)
    assert flight.on_item("B", "w", delta(1), 0.5) == (SendCancel("B", 1),)
    assert flight.replica == "A"
    assert flight.take() == []


def test_a_lost_acceptance_is_made_up_by_the_first_delta() -> None:
    flight = a_flight()
    flight.on_published(1, 11, 0.1)
    flight.on_item("A", "w", delta(0), 0.2)
    assert flight.replica == "A"
    assert text(flight.take()) == " t0"


def test_a_higher_attempt_was_never_given_out() -> None:
    flight = running()
    assert flight.on_item("A", "w", delta(1, attempt=2), 0.5) == ()
    assert flight.take() == []


def test_working_is_a_sign_of_life() -> None:
    flight = running()
    flight.on_item("A", "w", Working("j", 1, "prefill", 5, 10), 9.0)
    assert (flight.heard, flight.phase) == (9.0, "prefill")


# --- losses --------------------------------------------------------------------------------------------------


def test_a_lost_replica_moves_the_job_with_what_was_delivered() -> None:
    flight = running()
    flight.on_item("A", "w", delta(1), 0.4)
    assert flight.on_lost("A", "dead", 1.0) == [SendCancel("A", 1), Publish(2, "dead"), DeleteMessage(11)]
    assert (flight.state, flight.replica) == ("queued", "")
    job = flight.job_to_publish(50.0)
    assert (job.attempt, job.resume, job.published_s) == (2, [ResumeChoice([0, 1])], 50.0)


def test_after_a_move_the_text_goes_on_without_repeat_or_gap() -> None:
    flight = running()
    flight.on_lost("A", "dead", 1.0)
    assert flight.on_item("A", "w", delta(1), 1.1) == (SendCancel("A", 1),)  # the zombie
    flight.on_item("B", "v", accepted(2), 1.2)
    flight.on_item("B", "v", delta(1, 2, finish="stop"), 1.3)
    flight.on_item("B", "v", done(2), 1.4)
    assert text(flight.take()) == " t1"
    assert (flight.state, flight.worker) == ("done", "v")


def test_the_resume_prefix_says_which_choices_are_finished() -> None:
    flight = running(n=2)
    flight.on_item("A", "w", delta(1, choice=1, finish="stop"), 0.4)
    flight.on_lost("A", "dead", 1.0)
    assert flight.job_to_publish(0.0).resume == [ResumeChoice([0]), ResumeChoice([0, 1], "stop")]


def test_a_job_that_had_delivered_nothing_starts_anew() -> None:
    flight = a_flight()
    flight.on_published(1, 11, 0.1)
    flight.on_item("A", "w", accepted(), 0.2)
    flight.on_lost("A", "dead", 1.0)
    assert flight.job_to_publish(0.0).resume == []


def test_the_loss_of_another_replica_is_nothing() -> None:
    flight = running()
    assert flight.on_lost("B", "dead", 1.0) == ()


def test_attempts_end() -> None:
    flight = a_flight(max_attempts=2)
    flight.on_published(1, 11, 0.1)
    flight.on_item("A", "w", accepted(1), 0.2)
    flight.on_lost("A", "dead", 1.0)
    flight.on_published(2, 12, 1.1)
    flight.on_item("B", "w", accepted(2), 1.2)
    assert flight.on_lost("B", "hung", 2.0) == (SendCancel("B", 2), DeleteMessage(12), End())
    assert isinstance(end := flight.take()[-1], Broken)
    assert end.error.status == 503
    assert "2 attempts" in end.error.message
    assert "dead, hung" in end.error.message


def test_a_replica_that_stops_in_order_costs_no_attempt() -> None:
    flight = a_flight(max_attempts=2)
    for attempt in range(1, 8):
        flight.on_item("A", "w", accepted(attempt), 0.2)
        actions = flight.on_item("A", "w", Failed("j", attempt, "shutting_down", "bye"), 0.3)
        assert Publish(attempt + 1, "shutting_down") in actions


def test_a_replica_that_says_its_ranks_died_is_a_loss_at_once() -> None:
    flight = running()
    assert Publish(2, "replica_lost") in flight.on_item("A", "w", Failed("j", 1, "replica_lost", "oom"), 0.5)


def test_what_is_complete_but_for_its_summary_is_done() -> None:
    flight = running()
    flight.on_item("A", "w", delta(1, finish="stop"), 0.4)
    assert flight.on_lost("A", "dead", 1.0) == (DeleteMessage(11), SendConfirm("A", 1), End())
    assert flight.take()[-1] == Finished(Usage(prompt_tokens=5, completion_tokens=2), Timings())


def test_a_message_that_was_taken_and_not_answered_for_moves() -> None:
    flight = a_flight()
    flight.on_published(1, 11, 0.1)
    assert flight.on_unanswered(1, "unanswered", 3.0) == [Publish(2, "unanswered"), DeleteMessage(11)]
    assert flight.on_unanswered(1, "unanswered", 3.1) == ()


def test_a_failure_ends_the_job_and_tells_the_client() -> None:
    flight = a_flight()
    flight.on_published(1, 11, 0.1)
    failed = Failed("j", 1, "context_length_exceeded", "maximum context length is 8 tokens", "messages")
    assert flight.on_item("A", "w", failed, 0.2) == (End(),)  # the replica took the message out itself
    assert isinstance(end := flight.take()[-1], Broken)
    assert (end.error.status, end.error.code, end.error.param) == (400, "context_length_exceeded", "messages")


# --- missing deltas ------------------------------------------------------------------------------------------


def test_a_gap_is_asked_for_once_and_mended() -> None:
    flight = running()
    ask = AskReplay("A", 1, [1])
    assert flight.on_item("A", "w", delta(2), 0.5) == (ask,)
    assert flight.on_item("A", "w", delta(3), 0.5) == ()
    assert flight.take() == []
    reply = Replayed([accepted(), delta(0), delta(1), delta(2)])
    assert flight.on_replayed(ask, reply, 0.6) == []
    assert text(flight.take()) == " t1 t2 t3"  # 3 had come early
    assert flight.state == "running"


def test_a_replay_may_come_in_larger_pieces() -> None:
    flight = running()
    flight.on_item("A", "w", delta(3), 0.5)
    flight.on_replayed(AskReplay("A", 1, [1]), Replayed([delta(1, size=3)]), 0.6)
    assert text(flight.take()) == " t1 t2 t3"


def test_a_summary_before_the_last_delta_waits_for_it() -> None:
    flight = running()
    ask = AskReplay("A", 1, [1])
    assert flight.on_item("A", "w", done(), 0.5) == (ask,)
    assert flight.on_replayed(ask, Replayed([delta(1, finish="stop"), done()]), 0.6) == [SendConfirm("A", 1), End()]
    assert flight.state == "done"


def test_a_delta_that_arrives_during_the_replay_is_taken() -> None:
    flight = running()
    ask = flight.ask_again(0.5)[0]
    assert isinstance(ask, AskReplay)
    flight.on_item("A", "w", delta(1), 0.55)
    flight.on_replayed(ask, Replayed([delta(1)]), 0.6)
    assert text(flight.take()) == " t1"


def test_a_replica_that_forgot_the_job_loses_it() -> None:
    flight = running()
    ask = flight.ask_again(0.5)[0]
    assert isinstance(ask, AskReplay)
    assert Publish(2, "replay_gone") in flight.on_replayed(ask, Replayed(gone=True), 0.6)


def test_replays_in_vain_end_in_a_move() -> None:
    flight = running()
    ask = AskReplay("A", 1, [1])
    assert flight.on_item("A", "w", delta(5), 0.5) == (ask,)
    assert flight.on_replayed(ask, Replayed(), 0.6) == [ask]
    assert flight.on_replayed(ask, Replayed(), 0.7) == [ask]
    assert Publish(2, "replay_incomplete") in flight.on_replayed(ask, Replayed(), 0.8)


def test_a_replay_that_brings_a_part_is_asked_on() -> None:
    flight = running()
    flight.on_item("A", "w", delta(5), 0.5)
    assert flight.on_replayed(AskReplay("A", 1, [1]), Replayed([delta(1)]), 0.6) == [AskReplay("A", 1, [2])]


def test_an_answer_of_an_earlier_attempt_is_nothing() -> None:
    flight = running()
    ask = flight.ask_again(0.5)[0]
    assert isinstance(ask, AskReplay)
    flight.on_lost("A", "dead", 0.6)
    assert flight.on_replayed(ask, Replayed([delta(1)]), 0.7) == ()
    assert flight.take() == []


def test_an_unanswered_replay_leaves_the_job_where_it_is() -> None:
    flight = running()
    ask = flight.ask_again(0.5)[0]
    assert isinstance(ask, AskReplay)
    flight.on_replay_failed(ask)
    assert flight.state == "running"
    assert flight.ask_again(0.6) == (ask,)


def test_duplicates_are_dropped() -> None:
    flight = running()
    assert flight.on_item("A", "w", delta(0), 0.5) == ()
    flight.on_item("A", "w", delta(1, finish="stop"), 0.5)
    flight.on_item("A", "w", Delta("j", 1, 0, 2, [], "", "length"), 0.5)  # already finished
    assert text(flight.take()) == " t1"
    assert flight.choices[0].finish == "stop"


# --- redelivery ----------------------------------------------------------------------------------------------


def claim(attempt: int = 1, replica: str = "B") -> Claim:
    return Claim("j", attempt, replica)


def test_a_claim_of_a_job_that_does_well_is_dropped() -> None:
    assert running().on_claim(claim(), 0.9) == Claimed(drop=True)


def test_a_claim_of_a_silent_job_is_granted_under_a_new_number() -> None:
    flight = running()
    assert flight.on_claim(claim(), 5.0) == Claimed(attempt=2, resume=[ResumeChoice([0])])
    assert flight.on_item("A", "w", delta(1), 5.1) == (SendCancel("A", 1),)
    flight.on_item("B", "v", accepted(2), 5.2)
    flight.on_item("B", "v", delta(1, 2), 5.3)
    assert text(flight.take()) == " t1"


def test_a_claim_by_the_replica_that_seems_to_have_it_is_granted() -> None:
    """It would not ask if it had it: it said `Working` while it waited for an answer, or it has dropped the job."""
    flight = a_flight()
    flight.on_published(1, 11, 0.1)
    flight.on_item("B", "v", Working("j", 1, "queued"), 6.0)
    assert flight.on_claim(claim(), 6.1).attempt == 2
    assert flight.on_item("B", "v", accepted(2), 6.2) == ()
    assert (flight.state, flight.replica) == ("running", "B")


def test_a_claim_whose_answer_was_lost_gets_the_same_answer() -> None:
    flight = running()
    first = flight.on_claim(claim(), 5.0)
    assert flight.on_claim(claim(), 5.5) == first
    assert flight.on_claim(claim(replica="C"), 5.6) == Claimed(drop=True)
    assert flight.moves == ["claim"]
    flight.on_lost("B", "dead", 6.0)
    assert flight.on_claim(claim(), 6.1) == Claimed(drop=True)


def test_a_claim_of_a_job_that_nobody_answered_for_is_granted() -> None:
    flight = a_flight()
    flight.on_published(1, 11, 0.1)
    assert flight.on_claim(claim(), 5.0).attempt == 2


def test_a_claim_of_a_void_attempt_is_dropped() -> None:
    flight = running()
    flight.on_lost("A", "dead", 1.0)
    assert flight.on_claim(claim(1), 6.0) == Claimed(drop=True)


# --- the queue and the client --------------------------------------------------------------------------------


def test_a_cancelled_job_is_taken_from_replica_and_queue() -> None:
    flight = running()
    assert flight.cancel(1.0) == (SendCancel("A", 1), DeleteMessage(11), End())
    assert flight.cancel(1.1) == ()
    assert flight.on_item("A", "w", delta(1), 1.2) == (SendCancel("A", 1),)


def test_a_job_cancelled_while_being_published_is_deleted_afterwards() -> None:
    flight = a_flight()
    assert flight.cancel(0.1) == (End(),)
    assert flight.on_published(1, 11, 0.2) == (DeleteMessage(11),)


def test_a_job_that_is_done_before_the_queue_acknowledges_it_is_left_to_its_replica() -> None:
    flight = a_flight()
    flight.on_item("A", "w", accepted(), 0.1)
    flight.on_item("A", "w", delta(0, finish="stop"), 0.1)
    assert flight.on_item("A", "w", done(), 0.1) == (SendConfirm("A", 1), End())
    assert flight.on_published(1, 11, 0.2) == ()


def test_a_job_that_is_done_without_its_replica_is_deleted_when_the_queue_acknowledges_it() -> None:
    flight = a_flight()
    flight.on_item("A", "w", accepted(), 0.1)
    flight.on_item("A", "w", delta(0, finish="stop"), 0.1)
    assert flight.on_lost("A", "dead", 0.2) == (SendConfirm("A", 1), End())
    assert flight.on_published(1, 11, 0.3) == (DeleteMessage(11),)


def test_a_late_acknowledgement_of_a_void_attempt_deletes_its_message() -> None:
    flight = a_flight()
    flight.on_item("A", "w", accepted(), 0.1)
    flight.on_lost("A", "dead", 0.2)
    assert flight.on_published(1, 11, 0.3) == (DeleteMessage(11),)
    assert flight.seq is None


def test_a_job_that_cannot_be_published_fails() -> None:
    flight = a_flight()
    assert flight.on_publish_failed(1, Unavailable("no queue"), 0.1) == (End(),)
    assert isinstance(flight.take()[-1], Broken)


def test_a_publication_that_failed_but_arrived_is_no_failure() -> None:
    flight = a_flight()
    flight.on_item("A", "w", accepted(), 0.1)
    assert flight.on_publish_failed(1, Unavailable("no answer"), 0.2) == ()
    assert flight.state == "running"


def test_a_deadline_ends_the_stream_with_an_error() -> None:
    flight = running()
    flight.fail(DeadlineExceeded(5), 5.0)
    assert isinstance(end := flight.take()[-1], Broken)
    assert end.error.status == 504


def test_a_slow_reader_loses_its_job_at_the_bound() -> None:
    flight = a_flight()
    flight.on_item("A", "w", accepted(), 0.1)
    actions = [flight.on_item("A", "w", delta(index), 0.2) for index in range(MAX_BUFFERED)]
    assert SendCancel("A", 1) in actions[-1]
    assert all(not one for one in actions[:-1])
    events = flight.take()
    assert len(events) == MAX_BUFFERED + 1
    assert isinstance(end := events[-1], Broken)
    assert end.error.kind == "slow_client"


def test_keep_alives_come_only_when_nothing_else_waits() -> None:
    flight = running()
    waiting = Waiting("queued", 3)
    flight.keep_alive(waiting, 10.0)
    flight.keep_alive(waiting, 20.0)
    assert flight.take() == [waiting]


@pytest.mark.parametrize("choice", [-1, 1, 99])
def test_a_choice_that_was_not_asked_for_is_ignored(choice: int) -> None:
    flight = running()
    assert flight.on_item("A", "w", delta(0, choice=choice), 0.5) == ()
    assert flight.take() == []
