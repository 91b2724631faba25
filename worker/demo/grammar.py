"""Question templates: `[a|b|]` is a choice of one, `{name}` stands for a slot, both nest.

A slot is itself a template. Slots that nobody defined are left as they are, for a later `fill`.
"""

import random
import re
from collections.abc import Mapping
from functools import lru_cache

_SLOT = re.compile(r"\{([a-z_]+)\}")
_SPACES = re.compile(r" {2,}")

Choice = tuple["Sequence", ...]
Sequence = tuple["str | Choice", ...]


class GrammarError(ValueError):
    """A template whose brackets do not match. Carries the template; remedy: balance `[` and `]`."""

    def __init__(self, template: str) -> None:
        super().__init__(f"brackets do not match in template {template!r}")
        self.template = template


@lru_cache(maxsize=8192)
def parse(template: str) -> Sequence:
    """The template as a tree: text and choices in turn. Raises GrammarError when brackets do not match."""
    sequence, end = _sequence(template, 0, depth=0)
    if end != len(template):
        raise GrammarError(template)
    return sequence


def _sequence(template: str, at: int, *, depth: int) -> tuple[Sequence, int]:
    parts: list[str | Choice] = []
    start = at
    while at < len(template):
        char = template[at]
        if char == "[":
            parts.append(template[start:at])
            choice: list[Sequence] = []
            while template[at] != "]":
                option, at = _sequence(template, at + 1, depth=depth + 1)
                choice.append(option)
                if at >= len(template):
                    raise GrammarError(template)
            parts.append(tuple(choice))
            at += 1
            start = at
        elif char in "|]" and depth:
            break
        elif char == "]":
            raise GrammarError(template)
        else:
            at += 1
    parts.append(template[start:at])
    return tuple(part for part in parts if part != ""), at


def sample(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """One text of the template, every choice made with `rng`; runs of spaces become one."""
    text = template
    while True:
        text = _draw(parse(text), rng)
        filled = _SLOT.sub(lambda match: slots.get(match[1], match[0]), text)
        if filled == text:
            return _SPACES.sub(" ", text).strip()
        text = filled


def _draw(sequence: Sequence, rng: random.Random) -> str:
    return "".join(part if isinstance(part, str) else _draw(rng.choice(part), rng) for part in sequence)


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with each `{name}` in `values` replaced; other braces stay as they are."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), text)
