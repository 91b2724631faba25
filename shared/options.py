"""Options of a model's back end: every key that `[model.options]` of the catalogue may have, and what it may hold."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared import sources

TORCH, SYNTHETIC = "torch", "synthetic"
MAX_BYTES = float(1 << 50)
MAX_TOKENS = float(1 << 31)


@dataclass(frozen=True)
class Option:
    """One key. Exactly one of the four kinds of value: a switch, a number, a source, a choice (or several of them)."""

    backends: tuple[str, ...] = (TORCH,)
    task: str = ""  # the only task that knows it; empty: every one
    is_switch: bool = False
    most: float = 0.0  # a number from 0 to this
    is_source: bool = False
    choices: tuple[str, ...] = ()
    may_be_several: bool = False


# What each does stands in config/models.toml; a test holds both together, and the code that reads them.
OPTIONS: dict[str, Option] = {
    "cache_tokens": Option(backends=(TORCH, SYNTHETIC), most=MAX_TOKENS),
    "host_cache_bytes": Option(most=MAX_BYTES),
    "image_tokens": Option(most=MAX_TOKENS),
    "speculate": Option(is_switch=True),
    "draft": Option(is_source=True),
    "path": Option(choices=("fast", "generic")),
    "native": Option(is_switch=True),
    "packed": Option(is_switch=True),
    "quantization": Option(choices=("", "int8", "int4", "fp8")),
    "cuda": Option(is_switch=True),
    "attention": Option(choices=("varlen", "packed", "triton", "gather"), may_be_several=True),
    "triton": Option(is_switch=True),
    "graphs": Option(is_switch=True),
    "ahead": Option(is_switch=True),
    "pooling": Option(task="embed", choices=("mean", "cls", "last", "max")),
    "normalize": Option(task="embed", is_switch=True),
    "tokens_per_s": Option(backends=(SYNTHETIC,), most=1e9),
    "prefill_tokens_per_s": Option(backends=(SYNTHETIC,), most=1e9),
    "ballast_bytes": Option(backends=(SYNTHETIC,), most=MAX_BYTES),
}


@dataclass(frozen=True)
class Wrong:
    """What is wrong with one option, and what to do about it."""

    name: str
    problem: str
    remedy: str


def check(options: Mapping[str, Any], backend: str, task: str) -> Wrong | None:
    """The first thing that is wrong; None: nothing."""
    known = [name for name, one in OPTIONS.items() if backend in one.backends and one.task in ("", task)]
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            return Wrong(name, f"no option of the back end {backend} for task {task}", f"the nearest is {near!r}")
        if remedy := _objection(OPTIONS[name], value):
            return Wrong(name, f"{value!r} is no value of it", remedy)
    return None


def _objection(option: Option, value: Any) -> str:
    """What the value should be; empty where it is that."""
    if option.is_switch:
        return "" if isinstance(value, bool) else "write true or false"
    if option.is_source:
        is_good = isinstance(value, str) and sources.PATTERN.fullmatch(value)
        return "" if is_good else 'name a repository "org/name", a mirror\'s "scheme:org/name" or a path'
    if option.choices:
        values = value if option.may_be_several and isinstance(value, list) else [value]
        return (
            "" if set(map(str, values)) <= set(option.choices) else f"choose of {', '.join(map(repr, option.choices))}"
        )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if is_number and 0 <= value <= option.most else f"give a number from 0 to {option.most:g}"
