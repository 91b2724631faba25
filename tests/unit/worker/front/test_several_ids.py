"""A step may bring several tokens of a choice at once: text, stops and logprobs are those of one by one."""

import itertools

import pytest

from tests.support.letters import Letters, ids
from worker.front.choice import ChoiceRun
from worker.protocol import ChoiceLogprob, Output


def run(outputs, *, stop=(), stop_ids=frozenset()):
    """The deltas of these (ids, finish), and the choice."""
    letters = Letters()
    stream = letters.stream(None, stop=list(stop), prompt_ids=[])
    choice = ChoiceRun("job", 1, 0, stream, letters.token_text, stop_ids)
    deltas, start = [], 0
    for tokens, finish in outputs:
        logprobs = [ChoiceLogprob(id, -0.5, [(id, -0.5)]) for id in tokens]
        deltas.append(choice.advance(Output("job#1", 0, start, list(tokens), finish, 0, logprobs)))
        start += len(tokens)
        if choice.finish:
            break
    return deltas, choice


def whole(deltas):
    """Ids, text, end and the tokens of the logprobs, joined."""
    return (
        [id for delta in deltas for id in delta.ids],
        "".join(delta.text for delta in deltas),
        deltas[-1].finish,
        [entry.text for delta in deltas if delta.extra for entry in delta.extra.logprobs],
    )


@pytest.mark.parametrize("sizes", [[5, 6], [1, 9, 1], [11]])
@pytest.mark.parametrize("stop", [(), ("wor",), ("d",), ("lo w",)])
def test_pieces_of_any_size_say_the_same(sizes, stop):
    tokens = ids("hello world")
    ends = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    pieces = [(tokens[a:b], "length" if b == len(tokens) else None) for a, b in itertools.pairwise(ends)]
    singly = [([token], "length" if number == 10 else None) for number, token in enumerate(tokens)]
    got, choice = run(pieces, stop=stop)
    expected, _ = run(singly, stop=stop)
    got_ids, _, finish, logprobs = whole(got)
    assert (got_ids, finish, logprobs) == (whole(expected)[0], whole(expected)[2], whole(expected)[3])
    assert choice.position == len(got_ids)


def test_a_stop_token_at_the_end_of_several_counts_and_makes_no_text():
    deltas, choice = run([(ids("abc"), None), ([*ids("de"), 0], "stop")], stop_ids=frozenset({0}))
    assert whole(deltas) == ([*ids("abcde"), 0], "abcde", "stop", ["a", "b", "c", "d", "e", "\0"])
    assert choice.position == 6
