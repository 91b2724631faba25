"""Routing of delta batches, and what late messages are answered."""

from gateway.flight import DeleteMessage, End, Flight, Publish, SendCancel, SendConfirm
from gateway.streams import TELL_AGAIN_S, Reader, Streams
from shared.messages import (
    Accepted,
    Delta,
    DeltaBatch,
    Done,
    Item,
    Job,
    Prompt,
    Timings,
    Usage,
    encode,
)


def a_flight(job_id: str = "j") -> Flight:
    job = Job(id=job_id, model="m", reply="r", prompt=Prompt(text="x"))
    return Flight(job, max_attempts=4, deadline=100.0, now=0.0)


def batch(*items: Item, replica: str = "A") -> bytes:
    return encode(DeltaBatch(1, replica, "w", list(items)))


def done(job: str = "j", attempt: int = 1) -> Done:
    return Done(job, attempt, Usage(), Timings())


def finished(streams: Streams) -> Flight:
    flight = a_flight()
    streams.add(flight)
    streams.on_batch(batch(Accepted("j", 1, 5), Delta("j", 1, 0, 0, [1], "x", "stop"), done()), 1.0)
    streams.remove(flight)
    return flight


def test_a_batch_reaches_every_flight_in_it() -> None:
    streams, flights = Streams(), [a_flight("a"), a_flight("b")]
    for flight in flights:
        streams.add(flight)
    todo = streams.on_batch(batch(Delta("a", 1, 0, 0, [1], "x"), Delta("b", 1, 0, 0, [1], "y")), 1.0)
    assert todo == []
    assert [[event.text for event in flight.take() if isinstance(event, Delta)] for flight in flights] == [["x"], ["y"]]
    assert streams.peers["A"].heard == 1.0


def test_items_of_an_unknown_job_are_cancelled() -> None:
    assert Streams().on_batch(batch(Delta("x", 3, 0, 0, [1])), 1.0) == [("x", (SendCancel("A", 3),))]


def test_a_summary_that_comes_again_is_confirmed_again() -> None:
    streams = Streams()
    finished(streams)
    assert streams.on_batch(batch(done()), 6.0) == [("j", (SendConfirm("A", 1),))]


def test_another_replica_that_still_works_on_a_finished_job_is_cancelled() -> None:
    streams = Streams()
    finished(streams)
    assert streams.on_batch(batch(done(), replica="B"), 6.0) == [("j", (SendCancel("B", 1),))]


def test_a_zombie_is_told_once_a_second() -> None:
    streams = Streams()

    def is_told(attempt: int, now: float) -> bool:
        return bool(streams.on_batch(batch(Delta("j", attempt, 0, 0, [1])), now))

    assert is_told(1, 10.0)
    assert not is_told(1, 10.5)
    assert is_told(2, 10.5)
    assert is_told(1, 10.0 + TELL_AGAIN_S)


def test_memory_of_ended_jobs_is_bounded() -> None:
    streams = Streams(max_settled=3, max_told=3)
    for number in range(8):
        flight = a_flight(str(number))
        flight.state = "done"
        streams.remove(flight)
    assert list(streams._settled) == ["5", "6", "7"]
    for number in range(8):
        streams.on_batch(batch(Delta(str(number), 1, 0, 0, [1])), 0.0)
        assert len(streams._told) <= 3


def test_silent_replicas_without_jobs_are_forgotten() -> None:
    streams, flight = Streams(), a_flight()
    streams.add(flight)
    streams.on_batch(batch(Accepted("j", 1, 5), replica="busy"), 1.0)
    streams.on_batch(batch(replica="idle"), 1.0)
    streams.on_batch(batch(replica="fresh"), 50.0)
    streams.forget_silent(before=40.0)
    assert set(streams.peers) == {"busy", "fresh"}


def test_what_is_no_batch_does_no_harm() -> None:
    assert Streams().on_batch(b'{"not": "a batch"}', 1.0) == []


async def test_a_reader_waits_for_the_first_event_and_gets_all() -> None:
    flight = a_flight()
    reader = Reader(flight)
    flight.on_item("A", "w", Delta("j", 1, 0, 0, [1], "x"), 1.0)
    flight.on_item("A", "w", Delta("j", 1, 0, 1, [2], "y"), 1.0)
    assert [event.text for event in await reader.events() if isinstance(event, Delta)] == ["x", "y"]


async def test_a_reader_of_a_cancelled_job_is_let_go() -> None:
    flight = a_flight()
    flight.on_published(1, 11, 0.0)
    reader = Reader(flight)
    assert flight.cancel(1.0) == (DeleteMessage(11), End())
    assert await reader.events() == []


def test_a_flight_that_moved_is_heard_under_its_new_number_only() -> None:
    streams, flight = Streams(), a_flight()
    streams.add(flight)
    streams.on_batch(batch(Accepted("j", 1, 5)), 1.0)
    assert Publish(2, "dead") in flight.on_lost("A", "dead", 2.0)
    assert streams.on_batch(batch(Delta("j", 1, 0, 0, [1], "old")), 2.1) == [("j", (SendCancel("A", 1),))]
    assert streams.on_batch(batch(Delta("j", 2, 0, 0, [1], "new"), replica="B"), 2.2) == []
    assert [event.text for event in flight.take() if isinstance(event, Delta)] == ["new"]
