"""Who of those under which replicas died runs again, and when."""

from gateway.flight import MAX_PARDONS, Flight
from gateway.suspects import PATIENCE_S, PROVEN_S, Suspects
from shared.messages import Accepted, Delta, Job, Prompt


def a_suspect(name: str, started: float = 0.0, *, model: str = "m", num_crashes: int = 2) -> Flight:
    job = Job(id=name, model=model, reply="r", prompt=Prompt(text="x"))
    flight = Flight(job, max_attempts=4, deadline=100.0, now=started)
    for _ in range(num_crashes):
        crash(flight)
    return flight


def accept(flight: Flight) -> None:
    flight.on_item("A", "w", Accepted(flight.id, flight.attempt, 5), 1.0)


def token(flight: Flight) -> None:
    flight.on_item("A", "w", Delta(flight.id, flight.attempt, 0, flight.num_tokens, [1], "x"), 1.0)


def crash(flight: Flight) -> None:
    accept(flight)
    flight.on_lost("A", "replica_lost", 1.0)


def test_a_job_is_no_suspect_after_one_death_or_for_other_losses() -> None:
    flight = a_suspect("a", num_crashes=1)
    accept(flight)
    flight.on_lost("A", "replay_gone", 1.0)
    assert not flight.is_suspect
    crash(flight)
    assert flight.is_suspect


def test_suspects_of_a_model_run_one_after_another() -> None:
    suspects, first, second, other = Suspects(), a_suspect("a"), a_suspect("b", 1.0), a_suspect("c", model="n")
    assert suspects.may_run(first, 2.0)
    suspects.waits_no_more(first)
    assert suspects.may_run(other, 2.0)
    assert not suspects.may_run(second, 2.0)
    first.cancel(3.0)
    assert suspects.may_run(second, 3.0)


def test_the_one_with_the_fewest_losses_is_first() -> None:
    suspects, worse, better = Suspects(), a_suspect("a", num_crashes=3), a_suspect("b", 1.0)
    running = a_suspect("c")
    assert suspects.may_run(running, 2.0)
    suspects.waits_no_more(running)
    assert not suspects.may_run(better, 2.0)
    assert not suspects.may_run(worse, 2.0)
    crash(running)
    assert not suspects.may_run(worse, 3.0)
    assert suspects.may_run(better, 3.0)


def test_a_suspect_that_does_well_is_pardoned_and_the_next_begins() -> None:
    suspects, good, bad = Suspects(), a_suspect("a"), a_suspect("b", 1.0)
    assert suspects.may_run(good, 2.0)
    suspects.waits_no_more(good)
    accept(good)
    token(good)
    assert not suspects.may_run(bad, 2.1)
    assert not suspects.may_run(bad, 2.1 + PROVEN_S / 2)
    assert good.is_suspect
    assert suspects.may_run(bad, 2.1 + PROVEN_S)
    assert not good.is_suspect
    for _ in range(3):  # three more than it had: with those that were forgiven it would be over
        crash(good)
    assert good.state == "queued"
    crash(good)
    assert good.state == "failed"


def test_pardons_end() -> None:
    flight = a_suspect("a")
    for _ in range(MAX_PARDONS):
        flight.pardon()
        assert not flight.is_suspect
        crash(flight)
        crash(flight)
    flight.pardon()
    assert flight.is_suspect


def test_a_long_prompt_holds_up_the_others_for_a_while_only() -> None:
    suspects, slow, second = Suspects(), a_suspect("a"), a_suspect("b", 1.0)
    assert suspects.may_run(slow, 2.0)
    suspects.waits_no_more(slow)
    suspects.look(50.0)
    assert not suspects.may_run(second, 50.0)  # it waits in the queue, where it harms nobody
    accept(slow)
    suspects.look(50.0)
    assert not suspects.may_run(second, 50.0)
    assert suspects.may_run(second, 50.0 + PATIENCE_S)
    assert slow.is_suspect


def test_nothing_is_kept_of_what_is_over() -> None:
    suspects, flight, second = Suspects(), a_suspect("a"), a_suspect("b")
    assert suspects.may_run(flight, 2.0)
    suspects.waits_no_more(flight)
    assert not suspects.may_run(second, 2.0)
    suspects.waits_no_more(second)
    flight.cancel(3.0)
    suspects.look(3.1)
    assert len(suspects) == 0
