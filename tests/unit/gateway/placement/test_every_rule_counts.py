"""Taking out any one rule of the planner fails at least one scenario: a rule without a scenario is a rumour."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from gateway.placement import rules

SCENARIOS = [
    scenario
    for name in ("test_places", "test_memory", "test_unknown_sizes", "test_eviction", "test_idleness", "test_lifecycle")
    for _, scenario in inspect.getmembers(
        importlib.import_module(f"tests.unit.gateway.placement.{name}"), inspect.isfunction
    )
    if scenario.__name__.startswith("test_")
]
FIGURES = {"gb", "promise", "residency_s"}  # they say how much; others decide
RULES = [
    name
    for name, rule in inspect.getmembers(rules, inspect.isfunction)
    if rule.__module__ == rules.__name__ and name not in FIGURES
]
_NOTHING: dict[Any, Any] = {bool: False, str: "", int: 0, float: 0.0}


def without(name: str) -> Callable[..., Any]:
    """The rule as it would be, were it not there."""
    nothing = _NOTHING[inspect.signature(getattr(rules, name), eval_str=True).return_annotation]
    return lambda *_, **__: nothing


def test_there_are_at_least_sixty_scenarios() -> None:
    assert len(SCENARIOS) >= 60
    assert len({scenario.__name__ for scenario in SCENARIOS}) == len(SCENARIOS)


@pytest.mark.parametrize("name", RULES)
def test_without_this_rule_a_scenario_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, name, without(name))
    broken = []
    for scenario in SCENARIOS:
        try:
            scenario()
        except (AssertionError, LookupError, AttributeError, TypeError, ValueError):
            broken.append(scenario.__name__)
    assert broken, f"no scenario needs the rule {name}"


def test_with_every_rule_all_scenarios_hold() -> None:
    """The other half: else a scenario that always fails would prove every rule."""
    for scenario in SCENARIOS:
        scenario()
