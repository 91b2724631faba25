"""Scripts for the state machine of an embedding: every input is a choice of one token."""

from gateway.flight import AskReplay, End, Flight, Publish, SendCancel, SendConfirm
from gateway.request import Finished, Opened
from shared.messages import Accepted, Done, Embedded, Job, Prompt, Replayed, ResumeChoice, Timings, Usage


def running(num_inputs: int) -> Flight:
    """A flight whose first attempt is held by replica A."""
    inputs = [Prompt(text="x") for _ in range(num_inputs)]
    job = Job(id="j", model="m", reply="r", prompt=Prompt(), task="embed", inputs=inputs)
    flight = Flight(job, max_attempts=4, deadline=100.0, now=0.0)
    flight.on_published(1, 11, 0.1)
    flight.on_item("A", "w", Accepted("j", 1, 5, "fp"), 0.2)
    return flight


def vector(index: int, attempt: int = 1) -> Embedded:
    return Embedded("j", attempt, index, b"\0\0\0\0")


DONE = Done("j", 1, Usage(5), Timings())


def test_from_publication_to_confirmation() -> None:
    flight = running(2)
    for index in (1, 0):  # in any order
        assert flight.on_item("A", "w", vector(index), 0.3) == ()
    assert flight.on_item("A", "w", DONE, 0.4) == (SendConfirm("A", 1), End())
    assert flight.take() == [Opened(5, "fp"), vector(1), vector(0), Finished(Usage(5), Timings())]
    assert (flight.num_tokens, flight.first_token) == (0, 0.3)


def test_a_vector_counts_once() -> None:
    flight = running(2)
    flight.on_item("A", "w", vector(0), 0.3)
    flight.on_item("A", "w", vector(0), 0.3)
    flight.on_item("A", "w", vector(7), 0.3)
    assert len(flight.take()) == 2


def test_what_is_missing_at_the_end_is_asked_for() -> None:
    flight = running(3)
    flight.on_item("A", "w", vector(1), 0.3)
    ask = AskReplay("A", 1, [0, 1, 0])
    assert flight.on_item("A", "w", DONE, 0.4) == (ask,)
    again = AskReplay("A", 1, [1, 1, 0])
    assert list(flight.on_replayed(ask, Replayed([vector(0)]), 0.5)) == [again]  # as much as fitted into an answer
    assert list(flight.on_replayed(again, Replayed([vector(2), DONE]), 0.6)) == [SendConfirm("A", 1), End()]


def test_a_lost_replica_takes_no_vector_along() -> None:
    flight = running(2)
    flight.on_item("A", "w", vector(1), 0.3)
    assert list(flight.on_lost("A", "dead", 1.0))[:2] == [SendCancel("A", 1), Publish(2, "dead")]
    assert flight.job_to_publish(0.0).resume == [ResumeChoice([]), ResumeChoice([0], "stop")]
    assert flight.on_item("B", "w", vector(0, attempt=2), 2.0) == ()
    assert flight.on_item("B", "w", Done("j", 2, Usage(5), Timings()), 2.0) == (SendConfirm("B", 2), End())
