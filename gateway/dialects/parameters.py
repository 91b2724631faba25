"""What becomes of each parameter of a surface: honoured, ignored on purpose, or refused by name. Nothing else happens.

A name in none of the three lists is unknown: it is ignored as well, because clients send more names than any list
holds, and it comes back in the header ``x-plexus-ignored`` with those that are ignored on purpose.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import NotSupported

Refusal = tuple[tuple[object, ...], str]  # values that change nothing and so are taken; the remedy


@dataclass(frozen=True, slots=True)
class Parameters:
    """The table of one surface. docs/api.md shows it, and a test compares the two."""

    honoured: Mapping[str, str]  # name: what it does
    ignored: Mapping[str, str] = field(default_factory=dict)  # name: why
    refused: Mapping[str, Refusal] = field(default_factory=dict)  # an answer that ignored them would be a wrong answer

    def check(self, body: Mapping[str, Any]) -> list[str]:
        """The names in `body` that have no effect. Raises NotSupported for the first that is refused."""
        for name in body.keys() & self.refused.keys():
            value, (neutral, remedy) = body[name], self.refused[name]
            if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
                raise NotSupported(f"{name} is not supported: {remedy}.", param=name)
        return [name for name in body if name not in self.honoured and name not in self.refused]


def note_strangers(value: Mapping[str, Any], path: str, known: Set[str], dropped: list[str]) -> None:
    """Add the paths of those keys of an object inside a body that have no effect, for the header as well."""
    if not value.keys() <= known:
        dropped += [path + key for key in value if key not in known and value[key] is not None]
