"""Which known block begins with most of the wanted tokens, against looking at each token."""

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.branches import Branches, Shared

TOKENS = st.lists(st.integers(0, 2), max_size=40)


def shared(tokens: list[int], wanted: list[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(tokens, wanted, strict=False))))


@given(st.lists(TOKENS, max_size=8), TOKENS)
def test_the_one_that_shares_most_the_newest_of_equals(blocks: list[list[int]], wanted: list[int]) -> None:
    branches = Branches()
    for index, tokens in enumerate(blocks):
        branches.add(b"p", bytes([index]), tokens)
    best: Shared | None = None
    for index in reversed(range(len(blocks))):
        count = shared(blocks[index], wanted)
        if count > (best.num_tokens if best else 0):
            best = Shared(bytes([index]), count)
    assert branches.find(b"p", wanted) == best


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_first_difference_is_found_wherever_it_is(place: int, length: int) -> None:
    branches = Branches()
    tokens = list(range(length))
    branches.add(b"", b"n", tokens)
    wanted = [*tokens[:place], -1, *tokens[place + 1 :]]
    count = min(place, length)
    assert branches.find(b"", wanted) == (Shared(b"n", count) if count else None)


def test_nothing_is_found_behind_what_nobody_follows() -> None:
    branches = Branches()
    branches.add(b"p", b"n", [1, 2])
    branches.remove(b"n")
    assert branches.find(b"p", [1, 2]) is None and branches.find(b"q", [1]) is None
