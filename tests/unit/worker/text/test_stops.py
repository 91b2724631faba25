"""Stop strings end the text in front of them, wherever the pieces are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.text.needles import Needles
from worker.text.stops import StopFinder


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """Every piece that came out, and the stop string."""
    finder = StopFinder(stops)
    out = []
    for piece in pieces:
        text, stopped = finder.feed(piece)
        out.append(text)
        if stopped is not None:
            return out, stopped
    return [*out, finder.flush()], None


def test_holds_back_what_may_become_a_stop() -> None:
    assert run(["\n\nUser:"], ["Hello\n", "\nUs", "er: x"]) == (["Hello", "", ""], "\n\nUser:")
    assert run(["\n\nUser:"], ["Hello\n", "\nUnder"]) == (["Hello", "\n\nUnder", ""], None)
    assert run(["abc"], ["ab"]) == (["", "ab"], None)


def test_holds_back_no_more_than_that() -> None:
    assert run(["aab"], ["aaa"]) == (["a", "aa"], None)
    assert run(["END"], ["no such thing"]) == (["no such thing", ""], None)


@pytest.mark.parametrize("cut", range(1, 5))
def test_the_first_to_end_wins(cut: int) -> None:
    pieces = ["xabcd"[:cut], "xabcd"[cut:]]
    out, stopped = run(["abcd", "bc"], pieces)
    assert ("".join(out), stopped) == ("xa", "bc")


def test_of_those_that_end_together_the_longest_wins() -> None:
    assert run(["c", "bc"], ["abc"]) == (["a"], "bc")


def test_empty_stops_are_none() -> None:
    assert run([""], ["text"]) == (["text", ""], None)
    with pytest.raises(ValueError, match="empty"):
        Needles([""])


words = st.text("ab\n", min_size=1, max_size=4)


@given(st.lists(words, min_size=1, max_size=3), st.text("ab\nc", max_size=20), st.data())
def test_any_cut_gives_the_same(stops: list[str], text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, stopped = run(stops, pieces)
    whole, expected = run(stops, [text])
    assert ("".join(out), stopped) == ("".join(whole), expected)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert (stopped is None) == (not ends)
    if stopped is not None:
        assert len("".join(out)) + len(stopped) == min(ends)
        assert text.startswith("".join(out) + stopped)
    else:
        assert "".join(out) == text
