"""Who goes into the queue next."""

from gateway.flight import Flight
from gateway.turns import LEAST, Turns, is_full
from shared.messages import Job, Prompt, Sampling
from shared.names import JobClass


def a_flight(id: str, share: str = "a", model: str = "m", job_class: JobClass = "interactive") -> Flight:
    job = Job(id=id, model=model, reply="r", prompt=Prompt(), sampling=Sampling(), share=share, job_class=job_class)
    return Flight(job, max_attempts=3, deadline=100.0, now=0.0)


def enter(turns: Turns, *ids: str, **fields: str) -> list[Flight]:
    """Those of the new jobs that go into the queue."""
    flights = [a_flight(id, **fields) for id in ids]  # type: ignore[arg-type]
    return [one for one in flights if turns.enter(one)]


def ids(flights: list[Flight]) -> list[str]:
    return [one.id for one in flights]


def test_few_of_a_share_wait_in_the_queue_and_the_next_follows_the_first_that_is_accepted() -> None:
    turns = Turns()
    first, second = enter(turns, "1", "2", "3", "4", "5")
    assert ids([first, second]) == ["1", "2"] and LEAST == 2
    assert ids(turns.leave(second)) == ["3"]
    assert ids(turns.leave(second)) == []  # it says so twice
    assert ids(turns.leave(first)) == ["4"]


def test_shares_models_and_classes_do_not_wait_for_each_other() -> None:
    turns = Turns()
    enter(turns, "1", "2", "3")
    assert len(enter(turns, "4", share="b")) == 1
    assert len(enter(turns, "5", share="")) == 1
    assert len(enter(turns, "6", model="n")) == 1
    assert len(enter(turns, "7", job_class="batch")) == 1


def test_a_fourth_of_what_the_replicas_take_may_wait() -> None:
    """A large replica is filled as fast as it pulls."""
    turns = Turns()
    slots = {"m": 0}
    turns.num_slots = lambda model: slots[model]
    (first, *_) = enter(turns, *map(str, range(20)))
    slots["m"] = 32  # a replica became ready
    assert len(turns.leave(first)) == 7  # one waits: eight now
    assert enter(turns, "late") == []  # behind those that wait here


def test_a_client_that_leaves_waits_no_more() -> None:
    turns = Turns()
    held = a_flight("3")
    first, second = enter(turns, "1", "2")
    assert not turns.enter(held) and not turns.enter(a_flight("4"))
    assert turns.leave(held) == []
    assert ids(turns.leave(first)) == ["4"]
    assert turns.leave(second) == turns.leave(first) == []


def test_nothing_is_kept_of_shares_that_are_gone() -> None:
    turns = Turns()
    for number in range(50):
        for flight in enter(turns, f"{number}-1", share=str(number)):
            turns.leave(flight)
    assert turns._lines == {}


def test_places_count_the_turns_of_all_shares() -> None:
    turns = Turns()
    enter(turns, *"123456")
    enter(turns, *"abc", share="b")
    enter(turns, *"xyz", model="n")
    places = {flight.id: place for flight, place in turns.held("m", "interactive")}
    assert places == {"3": 1, "c": 1, "4": 2, "5": 3, "6": 4}  # 3 and c take turns, whoever is first


def test_a_full_queue_is_full_for_those_who_filled_it() -> None:
    """One key's flood was answered with 429 to everybody else."""
    flood = ["a"] * 8
    assert not is_full(flood[:7], "a", 8)
    assert is_full(flood, "a", 8)
    assert not is_full(flood, "b", 8)
    assert not is_full([*flood, *"bbb"], "b", 8)
    assert is_full([*flood, *"bbbb"], "b", 8)  # its even part
    assert is_full([*flood, *"bbbbcdef"], "g", 8)  # twice the limit is the end, however many keys there are
