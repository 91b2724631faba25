"""How well the demo model answers questions it was not trained on. No torch here: whoever asks brings a function.

`score` takes `ask(question) -> answer`, in this process or over HTTP; `score_tools` takes `call(question, tools)`,
which offers the tools and gives the calls that came back.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.demo import TEXT_DIRECTORY

HELD_OUT = TEXT_DIRECTORY / "held_out.toml"
PRACTICE = TEXT_DIRECTORY / "practice.toml"
FLOOR = 0.90

Ask = Callable[[str], str]
Calls = list[tuple[str, dict[str, Any]]]
CallTools = Callable[[str, list[dict[str, Any]]], Calls]


@dataclass(frozen=True)
class Question:
    """A held-out question; a right answer holds every text of `expect`, in any case."""

    fact: str
    text: str
    expect: tuple[str, ...]

    def is_right(self, answer: str) -> bool:
        """True if `answer` holds all that is expected."""
        return all(text.lower() in answer.lower() for text in self.expect)


@dataclass(frozen=True)
class ToolQuestion:
    """A held-out question that wants a tool call."""

    text: str
    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One question asked: what came back, and whether it was right."""

    fact: str
    question: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Score:
    """All outcomes of one round."""

    outcomes: tuple[Outcome, ...]

    @property
    def num_right(self) -> int:
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def share(self) -> float:
        """Right answers per question, 0.0 to 1.0."""
        return self.num_right / len(self.outcomes)

    @property
    def wrong(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if not outcome.right)

    def by_fact(self) -> dict[str, tuple[int, int]]:
        """For each fact how many answers were right, of how many."""
        table: dict[str, tuple[int, int]] = {}
        for outcome in self.outcomes:
            right, asked = table.get(outcome.fact, (0, 0))
            table[outcome.fact] = (right + outcome.right, asked + 1)
        return table


def questions(path: Path = HELD_OUT) -> list[Question]:
    """The questions of a held-out file."""
    groups = tomllib.loads(path.read_text(encoding="utf-8"))["group"]
    return [Question(group["fact"], text, tuple(group["expect"])) for group in groups for text in group["questions"]]


def tool_questions(path: Path = HELD_OUT) -> list[ToolQuestion]:
    """The tool questions of a held-out file."""
    cases = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]
    return [ToolQuestion(case["question"], case["tool"], case["arguments"]) for case in cases]


def tools() -> list[dict[str, Any]]:
    """The tools that go with the tool questions, as an OpenAI request lists them."""
    return [
        _tool("get_weather", "Get the current weather for a city."),
        _tool("get_time", "Get the current time for a city."),
    ]


def _tool(name: str, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def score(ask: Ask, path: Path = HELD_OUT) -> Score:
    """Asks every held-out question, one after the other."""
    outcomes = []
    for question in questions(path):
        answer = ask(question.text)
        outcomes.append(Outcome(question.fact, question.text, answer, question.is_right(answer)))
    return Score(tuple(outcomes))


def score_tools(call: CallTools, path: Path = HELD_OUT) -> Score:
    """Asks every held-out tool question with `tools` on offer; right is the one expected call and no other."""
    outcomes = []
    for question in tool_questions(path):
        calls = call(question.text, tools())
        outcomes.append(
            Outcome(question.tool, question.text, repr(calls), calls == [(question.tool, question.arguments)])
        )
    return Score(tuple(outcomes))
