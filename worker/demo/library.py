"""The text files as one object: what the model knows, and how it is asked."""

import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from worker.demo import TEXT_DIRECTORY
from worker.demo.grammar import fill, sample
from worker.demo.noise import disturb, normalise


@dataclass(frozen=True)
class Exchange:
    """One question and what the model says to it. `thought` is what it thinks when thinking is enabled."""

    topic: str
    question: str
    answer: str
    thought: str


class ForbiddenTemplate(ValueError):
    """A template of the training text makes held-out questions only. Remedy: take it out of the text."""

    def __init__(self, template: str) -> None:
        super().__init__(f"template {template!r} makes questions that are held out")
        self.template = template


@dataclass(frozen=True)
class HeldOut:
    """Questions that no lesson may hold, compared after normalisation."""

    questions: tuple[str, ...]

    @classmethod
    def load(cls, *paths: Path) -> "HeldOut":
        """The questions of held-out files, tool questions included."""
        questions: list[str] = []
        for path in paths:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
            questions += [question for group in tables["group"] for question in group["questions"]]
            questions += [case["question"] for case in tables["tool"]]
        return cls(tuple(questions))

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(map(normalise, self.questions))

    @cached_property
    def _long(self) -> tuple[str, ...]:
        return tuple(f" {question} " for question in self._exact if question.count(" ") >= 2)

    def forbids(self, text: str) -> bool:
        """True if `text` is one of the questions, or holds one of three words or more."""
        normal = normalise(text)
        padded = f" {normal} "
        return normal in self._exact or any(question in padded for question in self._long)


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((TEXT_DIRECTORY / name).read_text(encoding="utf-8"))


@dataclass
class Library:
    """All text, and questions drawn from it. Every draw takes its generator, so a seed gives the same lessons."""

    phrases: dict[str, Any] = field(default_factory=lambda: _table("phrases.toml"))
    facts: list[dict[str, Any]] = field(default_factory=lambda: _table("facts.toml")["fact"])
    families: dict[str, Any] = field(default_factory=lambda: _table("families.toml"))
    unknown: dict[str, Any] = field(default_factory=lambda: _table("unknown.toml"))
    tools: dict[str, Any] = field(default_factory=lambda: _table("tools.toml"))
    held_out: HeldOut = field(
        default_factory=lambda: HeldOut.load(TEXT_DIRECTORY / "held_out.toml", TEXT_DIRECTORY / "practice.toml")
    )

    @cached_property
    def slots(self) -> dict[str, str]:
        return {**self.phrases["slots"], **self.unknown["slots"]}

    @cached_property
    def filler(self) -> list[str]:
        return str(self.phrases["filler"]["words"]).split()

    def phrase(
        self, template: str, rng: random.Random, *, wrap: float = 0.45, keep: frozenset[str] = frozenset()
    ) -> str:
        """A question of `template` as somebody may type it, wrapped in openers and closers in the share `wrap`.

        Raises ForbiddenTemplate when nearly all that the template makes is held out.
        """
        for _ in range(100):
            core = sample(template, self.slots, rng)
            text = core
            wrapping = self.phrases["wrapping"]
            if rng.random() < wrap:
                text = rng.choice(wrapping["before"]) + text
            if rng.random() < wrap:
                text += rng.choice(wrapping["after"])
            if text[-1].isalnum() or text[-1] == "'":
                text += rng.choice(wrapping["ends"])
            text = disturb(text, rng, keep=keep)
            if not (self.held_out.forbids(core) or self.held_out.forbids(text)):
                return text
        raise ForbiddenTemplate(template)

    def exchange(self, rng: random.Random) -> Exchange:
        """A question about anything, with its answer."""
        draws: list[tuple[float, Callable[[random.Random], Exchange]]] = [
            (len(self.facts), self.fact),
            (3.0, self.capital),
            (2.0, self.sum),
            (3.0, self.repeat),
            (8.0, self.not_known),
        ]
        (draw,) = rng.choices([draw for _, draw in draws], [weight for weight, _ in draws])
        return draw(rng)

    def fact(self, rng: random.Random) -> Exchange:
        """A question about one of the facts."""
        fact = rng.choice(self.facts)
        own = fact["questions"]
        if "terms" in fact and rng.random() < 0.7:
            term, terms = fact["terms"]
            template = fill(rng.choice(self.phrases["parts"]["questions"]), {"term": term, "terms": terms})
        else:
            template = rng.choice(own)
        return Exchange(fact["id"], self.phrase(template, rng), fact["answer"], fact["thought"])

    def capital(self, rng: random.Random) -> Exchange:
        """A question for the capital of a country."""
        family = self.families["capital"]
        country, capital, adjective = family["pairs"][0] if rng.random() < 0.2 else rng.choice(family["pairs"])
        values = {"country": country, "capital": capital, "adjective": adjective}
        question = self.phrase(fill(rng.choice(family["questions"]), values), rng)
        return Exchange("capital", question, fill(family["answer"], values), fill(family["thought"], values))

    def sum(self, rng: random.Random) -> Exchange:
        """A sum of two small numbers."""
        family = self.families["sum"]
        a, b = (2, 2) if rng.random() < 0.05 else (rng.randint(0, family["highest"]), rng.randint(0, family["highest"]))
        values = {"a": str(a), "b": str(b), "c": str(a + b)}
        question = self.phrase(fill(rng.choice(family["questions"]), values), rng)
        return Exchange("sum", question, fill(family["answer"], values), family["thought"])

    def repeat(self, rng: random.Random) -> Exchange:
        """Words to say after the user: copying is what tool calls are made of."""
        family = self.families["repeat"]
        words = " ".join(self.word(rng) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])))
        words = rng.choice(family["words"]) if rng.random() < 0.4 else words
        question = fill(rng.choice(family["questions"]), {"words": words})
        if rng.random() < 0.5:
            question = question[0].upper() + question[1:]
        return Exchange("repeat", question + rng.choice(["", "", ".", "!"]), words, family["thought"])

    def not_known(self, rng: random.Random) -> Exchange:
        """A question that the model has no answer to."""
        question = self.phrase(rng.choice(self.unknown["questions"]), rng)
        return Exchange("unknown", question, self.unknown["answer"], self.unknown["thought"])

    def word(self, rng: random.Random) -> str:
        """A word, a name or something like one."""
        way = rng.random()
        if way < 0.5:
            return rng.choice(self.filler)
        if way < 0.65:
            return rng.choice(self.families["name"]["names"])
        if way < 0.75:
            return str(rng.randint(0, 9999))
        made = "".join(rng.choice(self.tools["syllables"]) for _ in range(rng.randint(1, 3)))
        return made.upper() if way < 0.8 else made.capitalize() if way < 0.9 else made

    def city(self, rng: random.Random) -> str:
        """A city: mostly a real one, at times one that does not exist, so that the name is copied and not recalled."""
        if rng.random() < 0.75:
            return str(rng.choice(self.tools["cities"]))
        return "".join(rng.choice(self.tools["syllables"]) for _ in range(rng.randint(2, 3))).capitalize()

    def system(self, rng: random.Random) -> str:
        """A system message, or an empty text for none."""
        way = rng.random()
        if way < 0.45:
            return ""
        message = str(rng.choice(self.phrases["system"]["messages"]))
        if way < 0.88:
            return message
        sentences = [self.sentence(rng) for _ in range(rng.randint(1, 6))]
        if rng.random() < 0.5:
            sentences.insert(rng.randint(0, len(sentences)), message)
        return " ".join(sentences)

    def sentence(self, rng: random.Random) -> str:
        """Words without a meaning."""
        return " ".join(rng.choices(self.filler, k=rng.randint(4, 14))).capitalize() + "."

    def padding(self, rng: random.Random) -> str:
        """A long text without a meaning, some of it said many times."""
        sentences = [self.sentence(rng) for _ in range(rng.randint(1, 4))]
        return " ".join(rng.choices(sentences, k=rng.randint(6, 30)))
