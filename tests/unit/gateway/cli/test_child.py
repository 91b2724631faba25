"""How long a process that dies again and again is waited for."""

from gateway.cli.child import Backoff


def test_waits_grow_and_are_bounded() -> None:
    backoff = Backoff(first_s=0.2, most_s=2.0, window_s=60.0, most_deaths=6)
    assert [backoff.died(float(now)) for now in range(6)] == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_a_process_that_dies_too_often_is_given_up() -> None:
    backoff = Backoff(window_s=60.0, most_deaths=3)
    assert all(backoff.died(float(now)) for now in range(3))
    assert backoff.died(3.0) is None


def test_deaths_that_lie_far_apart_do_not_add_up() -> None:
    backoff = Backoff(first_s=0.2, window_s=60.0, most_deaths=2)
    assert [backoff.died(100.0 * n) for n in range(10)] == [0.2] * 10
