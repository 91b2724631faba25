"""Typing as people do it, and comparing in spite of it."""

import random

from worker.demo.noise import disturb, normalise


def test_normalise_ignores_case_punctuation_and_spaces() -> None:
    assert normalise("  What's  the PORT?! ") == normalise("what s the port") == "what s the port"


def test_words_that_answers_copy_are_kept() -> None:
    rng = random.Random(2)
    for _ in range(500):
        text = disturb("what is the weather in Zantorville", rng, keep=frozenset({"Zantorville"}))
        assert "Zantorville" in text


def test_disturb_makes_variants_of_case_and_spelling() -> None:
    rng = random.Random(3)
    made = {disturb("what is the port of plexus?", rng) for _ in range(500)}
    assert "What is the port of Plexus?" in made
    assert "WHAT IS THE PORT OF PLEXUS?" in made
    assert len({normalise(text) for text in made}) > 20


def test_the_same_seed_makes_the_same_text() -> None:
    first, second = random.Random(4), random.Random(4)
    text = "who decides which worker loads a model"
    assert [disturb(text, first) for _ in range(50)] == [disturb(text, second) for _ in range(50)]
