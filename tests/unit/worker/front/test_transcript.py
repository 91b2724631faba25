"""Kept deltas come back the same, from any place where one ended."""

from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Delta, Extra, TokenLogprob, ToolCall
from worker.front.transcript import Transcript


def transcript(deltas: list[tuple[list[int], str, str]], start: int = 0) -> Transcript:
    kept, position = Transcript(start), start
    for number, (ids, text, reasoning) in enumerate(deltas):
        finish = "stop" if number == len(deltas) - 1 else None
        kept.append(Delta("j", 1, 0, position, ids, text, finish, Extra(reasoning) if reasoning else None))
        position += len(ids)
    return kept


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2**31), min_size=1, max_size=3), st.text(max_size=3), st.text(max_size=2))
    ),
    st.integers(0, 5),
    st.integers(1, 7),
    st.data(),
)
def test_what_comes_back_continues_what_is_held(
    deltas: list[tuple[list[int], str, str]], start: int, limit: int, data: st.DataObject
) -> None:
    kept = transcript(deltas, start)
    cut = data.draw(st.integers(0, len(deltas)))
    position = start + sum(len(ids) for ids, _, _ in deltas[:cut])
    back = kept.since("j", 1, 0, position, limit)
    assert back is not None
    assert [id for delta in back for id in delta.ids] == [id for ids, _, _ in deltas[cut:] for id in ids]
    assert "".join(delta.text for delta in back) == "".join(text for _, text, _ in deltas[cut:])
    reasoning = "".join(delta.extra.reasoning for delta in back if delta.extra)
    assert reasoning == "".join(reasoning for _, _, reasoning in deltas[cut:])
    for delta in back:
        assert delta.start == position
        position += len(delta.ids)
        assert len(delta.ids) < limit + 3
    if back:
        assert [delta.finish for delta in back] == [None] * (len(back) - 1) + ["stop"]


def test_between_two_ends_there_is_nothing_to_continue() -> None:
    kept = transcript([([1, 2], "ab", ""), ([3], "c", "")])
    assert kept.since("j", 1, 0, 1, 100) is None
    assert kept.since("j", 1, 0, 4, 100) is None
    assert transcript([], 3).since("j", 1, 0, 0, 100) is None


def test_a_finish_without_ids_comes_back() -> None:
    kept = transcript([([1], "a", ""), ([], "b", "")])
    (delta,) = kept.since("j", 1, 0, 1, 100) or []
    assert (delta.ids, delta.text, delta.finish) == ([], "b", "stop")


def test_tool_calls_and_logprobs_come_back() -> None:
    kept = Transcript(0)
    call, logprob = ToolCall(0, "id", "f", "{}"), TokenLogprob(1, "a", -0.5)
    kept.append(Delta("j", 1, 0, 0, [1], "", None, Extra(logprobs=[logprob])))
    kept.append(Delta("j", 1, 0, 1, [2], "", "tool_calls", Extra(tool_calls=[call])))
    (delta,) = kept.since("j", 1, 0, 0, 100) or []
    assert delta.extra == Extra(tool_calls=[call], logprobs=[logprob])
    assert kept.size_bytes > 800
