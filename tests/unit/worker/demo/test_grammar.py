"""Templates: choices, slots, and what is refused."""

import random

import pytest

from worker.demo.grammar import GrammarError, fill, sample


def every(template: str, slots: dict[str, str] | None = None, draws: int = 300) -> set[str]:
    rng = random.Random(1)
    return {sample(template, slots or {}, rng) for _ in range(draws)}


def test_a_choice_takes_each_of_its_options() -> None:
    assert every("what [is|was|] it") == {"what is it", "what was it", "what it"}


def test_choices_nest() -> None:
    assert every("[a[b|c]|d]") == {"ab", "ac", "d"}


def test_a_slot_is_a_template_itself() -> None:
    assert every("{greeting} you", {"greeting": "[hi|{long}]", "long": "good [day|night],"}) == {
        "hi you",
        "good day, you",
        "good night, you",
    }


def test_an_unknown_slot_stays() -> None:
    assert every("in {city}") == {"in {city}"}


def test_spaces_left_by_empty_options_are_closed() -> None:
    assert every(" a [|] b ") == {"a b"}


@pytest.mark.parametrize("template", ["[a", "a]", "[a|b", "[a]]", "[[a]"])
def test_brackets_that_do_not_match_are_refused(template: str) -> None:
    with pytest.raises(GrammarError, match="brackets"):
        sample(template, {}, random.Random(1))


def test_fill_leaves_other_braces_alone() -> None:
    assert fill('{"city": "{city}", "n": {number}}', {"city": "Rome"}) == '{"city": "Rome", "n": {number}}'
