"""Options of models: known, checked and explained in one place each."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shared.files import example
from shared.options import OPTIONS, check

WORKER = Path(__file__).parents[3] / "worker"
READ = re.compile(r"""options(?:\.get\(|\.pop\(|\[)["'](\w+)["']""")


def read_by_the_code() -> set[str]:
    """Every key that a worker's code takes from a model's options by its name."""
    found: set[str] = set()
    for file in WORKER.rglob("*.py"):
        found |= set(READ.findall(file.read_text()))
    return found


def test_every_option_that_the_code_reads_is_known() -> None:
    assert len(read_by_the_code()) > 8
    assert read_by_the_code() <= OPTIONS.keys()


def test_every_known_option_is_explained_in_the_annotated_file() -> None:
    explained = set(re.findall(r"^#   (\w+) = ", example("models.toml").read_text(), re.MULTILINE))
    assert explained == OPTIONS.keys()


def test_the_examples_in_the_annotated_file_are_good() -> None:
    for name, value in re.findall(r"^#   (\w+) = (\S+)", example("models.toml").read_text(), re.MULTILINE):
        backend, task = OPTIONS[name].backends[0], OPTIONS[name].task or "generate"
        assert check(tomllib.loads(f"{name} = {value}"), backend, task) is None, name


@pytest.mark.parametrize(
    ("options", "backend", "task", "problem", "remedy"),
    [
        ({"speculat": True}, "torch", "generate", "no option of the back end torch", "'speculate'"),
        ({"tokens_per_s": 3}, "torch", "generate", "no option of the back end torch", "nearest"),
        ({"pooling": "mean"}, "torch", "generate", "for task generate", "nearest"),
        ({"speculate": 1}, "torch", "generate", "1 is no value", "true or false"),
        ({"cache_tokens": -1}, "torch", "generate", "-1 is no value", "from 0"),
        ({"cache_tokens": True}, "torch", "generate", "True is no value", "from 0"),
        ({"cache_tokens": float("nan")}, "torch", "generate", "nan is no value", "from 0"),
        ({"attention": ["varlen", "magic"]}, "torch", "generate", "is no value", "'gather'"),
        ({"path": ["fast"]}, "torch", "generate", "is no value", "'generic'"),
        ({"draft": "small"}, "torch", "generate", "is no value", "org/name"),
        ({"ballast_bytes": 1}, "torch", "embed", "no option", "nearest"),
    ],
)
def test_what_is_wrong_is_told_with_a_remedy(
    options: dict[str, Any], backend: str, task: str, problem: str, remedy: str
) -> None:
    wrong = check(options, backend, task)
    assert wrong is not None
    assert wrong.name in options
    assert problem in wrong.problem
    assert remedy in wrong.remedy


@pytest.mark.parametrize(
    "options",
    [
        {"cache_tokens": 4096, "host_cache_bytes": 0, "speculate": False, "draft": "lab:org/small"},
        {"attention": ["triton", "gather"], "graphs": False},
        {"attention": "gather"},
        {},
    ],
)
def test_good_options_pass(options: dict[str, Any]) -> None:
    assert check(options, "torch", "generate") is None
