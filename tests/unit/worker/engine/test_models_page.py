"""docs/models.md claims what is tested, and names what is refused."""

import re
from pathlib import Path

import pytest

from tests.support.models import CONFIGS
from tests.unit.worker.engine.test_self_test import REFUSED
from worker.engine.fast.families import FAMILIES
from worker.models import vision

PAGE = Path(__file__).parents[4] / "docs" / "models.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_claims(page: str) -> None:
    table = page.split("| family (`model_type`) | path |")[1].split("\n\n")[0]
    rows = [re.findall(r"\|([^|]*)\|([^|]*)\|", line)[0] for line in table.splitlines()[2:]]
    claimed = {name.strip(): path for names, path in rows for name in names.split(",")}
    assert set(claimed) == set(CONFIGS)
    assert {name for name, path in claimed.items() if "fast" in path} == set(FAMILIES)


def test_images(page: str) -> None:
    table = page.split("## Images")[1].split("\n\n")[2]
    for family in vision.FAMILIES:
        assert family in table


def test_refusals(page: str) -> None:
    refused = page.split("## What is refused, and why")[1]
    for name in REFUSED:
        assert name in refused
