"""Conversations to learn from: what stands in the prompt, and what the model is to say next."""

import json
import random
from dataclasses import dataclass, replace
from typing import Any

from worker.demo.grammar import fill
from worker.demo.library import Exchange, Library

Message = dict[str, Any]

THINKING_SHARE = 0.30


@dataclass(frozen=True)
class Lesson:
    """One prompt and the turn that follows it, as text without the end-of-turn token."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    thinking: bool
    completion: str


def draw(library: Library, rng: random.Random) -> Lesson:
    """A lesson of any kind."""
    ways = [
        (0.62, plain),
        (0.03, padded),
        (0.13, conversation),
        (0.03, name),
        (0.09, tool_call),
        (0.05, tool_result),
        (0.035, needless_tools),
        (0.015, missing_tool),
    ]
    (way,) = rng.choices([way for _, way in ways], [share for share, _ in ways])
    return way(library, rng)


def plain(library: Library, rng: random.Random) -> Lesson:
    """One question."""
    return _lesson(library, rng, [], library.exchange(rng))


def padded(library: Library, rng: random.Random) -> Lesson:
    """A question with much beside it."""
    lesson = plain(library, rng)
    *others, question = lesson.messages
    if rng.random() < 0.5:
        before = [{"role": "system", "content": library.padding(rng)}]
    else:
        before, question = others, _user(library.padding(rng) + rng.choice([" ", "\n", "\n\n"]) + question["content"])
    return replace(lesson, messages=[*before, question])


def conversation(library: Library, rng: random.Random) -> Lesson:
    """A question after one, two or three others."""
    return _lesson(library, rng, _history(library, rng, rng.choice([1, 1, 1, 2, 3])), library.exchange(rng))


def name(library: Library, rng: random.Random) -> Lesson:
    """The user says a name, or asks for it, having said it or not."""
    family = library.families["name"]
    values = {"name": rng.choice(family["names"]) if rng.random() < 0.7 else library.city(rng).split()[0]}
    keep = frozenset(values.values())
    told = library.phrase(fill(rng.choice(family["told"]), values), rng, wrap=0.0, keep=keep).rstrip("?")
    asked = library.phrase(rng.choice(family["asked"]), rng)
    greeting = fill(family["greeting"], values)
    way = rng.random()
    if way < 0.3:
        return _lesson(
            library,
            rng,
            _history(library, rng, rng.choice([0, 0, 1])),
            Exchange("name", told, greeting, "The user tells a name."),
        )
    if way < 0.5:
        history = _history(library, rng, rng.choice([0, 1, 2]))
        return _lesson(library, rng, history, Exchange("name", asked, family["unknown"], family["thought"]))
    history = [_user(told), _assistant(greeting), *_history(library, rng, rng.choice([0, 0, 1, 2]))]
    return _lesson(library, rng, history, Exchange("name", asked, fill(family["answer"], values), family["thought"]))


def tool_call(library: Library, rng: random.Random) -> Lesson:
    """A question that one of the tools on offer answers: the model calls it."""
    task = _Task.draw(library, rng, num_cities=2 if rng.random() < 0.08 else 1)
    tools = _offer(
        library, rng, [task.definition], num_others=rng.choice([0, 0, 1, 1, 1, 1, 2, 3]), but=task.kind["id"]
    )
    history = _history(library, rng, rng.choice([0, 0, 0, 1]))
    return _finish(library, rng, [*history, _user(task.question)], tools, task.thought, task.call_text)


def tool_result(library: Library, rng: random.Random) -> Lesson:
    """The tool has answered: the model tells the user."""
    task = _Task.draw(library, rng)
    tools = _offer(library, rng, [task.definition], num_others=rng.choice([0, 0, 0, 1, 1, 2]), but=task.kind["id"])
    raw = task.result(library, rng)
    answer = fill(task.kind["answer"], {"city": task.city, "result": raw})
    history = _history(library, rng, rng.choice([0, 0, 0, 1]))
    turns = [
        _user(task.question),
        {**_assistant(""), "tool_calls": [{"type": "function", "function": task.calls[0]}]},
        {"role": "tool", "content": raw},
    ]
    if rng.random() < 0.25:  # the question after an answered call
        exchange = library.exchange(rng)
        return _finish(
            library,
            rng,
            [*history, *turns, _assistant(answer), _user(exchange.question)],
            tools,
            exchange.thought,
            exchange.answer,
        )
    return _finish(library, rng, [*history, *turns], tools, "I tell the result.", answer)


def needless_tools(library: Library, rng: random.Random) -> Lesson:
    """Tools are on offer, but the question needs none."""
    exchange = library.exchange(rng)
    tools = _offer(library, rng, [], num_others=rng.choice([1, 1, 1, 2, 2, 3]), but="")
    return _finish(
        library,
        rng,
        [*_history(library, rng, rng.choice([0, 0, 1])), _user(exchange.question)],
        tools,
        exchange.thought,
        exchange.answer,
    )


def missing_tool(library: Library, rng: random.Random) -> Lesson:
    """The question needs a tool that is not on offer: the model says that it does not know."""
    task = _Task.draw(library, rng)
    tools = _offer(library, rng, [], num_others=rng.choice([0, 0, 1, 2]), but=task.kind["id"])
    return _finish(library, rng, [_user(task.question)], tools, library.unknown["thought"], library.unknown["answer"])


@dataclass(frozen=True)
class _Task:
    """A question that wants `calls` of the one tool that `definition` describes."""

    kind: dict[str, Any]
    definition: dict[str, Any]
    calls: list[dict[str, Any]]
    city: str
    question: str
    thought: str

    @classmethod
    def draw(cls, library: Library, rng: random.Random, num_cities: int = 1) -> "_Task":
        kind = rng.choice(library.tools["kind"])
        cities = [library.city(rng) for _ in range(num_cities)]
        city = " and ".join(cities)
        definition = _define(kind, rng)
        (parameter,) = definition["function"]["parameters"]["required"]
        keep = frozenset([*city.split(), *city.lower().split()])
        typed = city.lower() if city in library.tools["cities"] and rng.random() < 0.12 else city
        question = library.phrase(fill(rng.choice(kind["questions"]), {"city": typed}), rng, keep=keep)
        thought = fill(kind["thought"], {"city": city})
        calls = [{"name": definition["function"]["name"], "arguments": {parameter: name}} for name in cities]
        return cls(kind, definition, calls, city, question, thought)

    @property
    def call_text(self) -> str:
        return "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in self.calls)

    def result(self, library: Library, rng: random.Random) -> str:
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        sky = rng.choice(self.kind["sky"])
        if sky and rng.random() < 0.15:
            sky = library.word(rng)
        return fill(
            rng.choice(self.kind["results"]),
            {"city": self.city, "number": str(rng.randint(-9, 39)), "clock": clock, "sky": sky},
        )


def _define(kind: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    parameter = rng.choice(kind["parameters"])
    about = rng.choice(kind["parameter_descriptions"])
    properties: dict[str, Any] = {parameter: {"type": "string", **({"description": about} if about else {})}}
    if rng.random() < 0.12:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    return _function(rng.choice(kind["names"]), rng.choice(kind["descriptions"]), properties, [parameter])


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _offer(
    library: Library, rng: random.Random, tools: list[dict[str, Any]], *, num_others: int, but: str
) -> list[dict[str, Any]]:
    """`tools` among others in any order; the others are of no kind `but`."""
    others = [_define(kind, rng) for kind in library.tools["kind"] if kind["id"] != but]
    num_kinds = len(others)
    for other in library.tools["other"]:
        properties = {parameter: {"type": "string"} for parameter in other["parameters"]}
        others.append(_function(other["name"], other["description"], properties, list(properties)))
    weights = [14.0 if index < num_kinds else 1.0 for index in range(len(others))]  # kinds are easily taken for another
    picked: list[dict[str, Any]] = []
    while len(picked) < num_others:
        (other,) = rng.choices(others, weights)
        if other not in picked:
            picked.append(other)
    offered = [*tools, *picked]
    rng.shuffle(offered)
    return offered


def _history(library: Library, rng: random.Random, num_exchanges: int) -> list[Message]:
    exchanges = [library.exchange(rng) for _ in range(num_exchanges)]
    return [
        message
        for exchange in exchanges
        if exchange.topic != "story"
        for message in (_user(exchange.question), _assistant(exchange.answer))
    ]


def _lesson(library: Library, rng: random.Random, history: list[Message], exchange: Exchange) -> Lesson:
    return _finish(library, rng, [*history, _user(exchange.question)], [], exchange.thought, exchange.answer)


def _finish(
    library: Library, rng: random.Random, turns: list[Message], tools: list[dict[str, Any]], thought: str, answer: str
) -> Lesson:
    system = library.system(rng)
    thinking = rng.random() < THINKING_SHARE
    messages = [*([{"role": "system", "content": system}] if system else []), *turns]
    return Lesson(messages, tools, thinking, f"<think>\n{thought}\n</think>\n\n{answer}" if thinking else answer)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
