"""What a test says about a client, for the table of results."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest

DEMO, SCRIPTED, RANDOM = "demo model", "scripted", "random weights"
PROPERTY = "client"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table but for its result."""

    client: str
    version: str
    surface: str
    did: str
    model: str  # who played it: one of the words above


Tell = Callable[..., None]


def teller(request: pytest.FixtureRequest) -> Tell:
    """A function that puts down what this test is about; call it before anything can fail."""

    def tell(**fields: Any) -> None:
        request.node.user_properties.append((PROPERTY, asdict(Row(**fields))))

    return tell
