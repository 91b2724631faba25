"""How a model's source is written: a path, a hub repository, or a repository of a mirror that workers know by name."""

import re
from collections.abc import Collection, Mapping
from typing import Any

USUAL = "huggingface"  # the scheme of the usual hub; the same as none

PATTERN = re.compile(r"/.*|(?:[a-z][a-z0-9_-]*:)?[\w.-]+/[\w.-]+")
_SCHEME = re.compile(r"([a-z][a-z0-9_-]*):(.+)")


def is_scheme(name: str) -> bool:
    """Whether a mirror may be called so."""
    return name != USUAL and _SCHEME.fullmatch(f"{name}:x") is not None


def is_path(source: str) -> bool:
    """Whether it is a directory of the worker's, and no repository."""
    return source.startswith("/")


def split(source: str) -> tuple[str, str]:
    """(scheme, the rest): ``lab:org/name`` is ("lab", "org/name"). Of the usual hub, the scheme is empty."""
    found = _SCHEME.fullmatch(source)
    if found is None:
        return "", source
    return ("" if found[1] == USUAL else found[1]), found[2]


def mirrors(source: str, options: Mapping[str, Any]) -> set[str]:
    """Names of the mirrors that a model comes from: its own, and that of the draft model which its options name."""
    named = [source, str(options.get("draft") or "")]
    return {scheme for scheme, _ in map(split, named) if scheme}


def missing(source: str, options: Mapping[str, Any], known: Collection[str]) -> str:
    """Those of them that are not known, in words, such as ``the mirror 'lab'``; empty: none is missing."""
    unknown = sorted(mirrors(source, options) - set(known))
    return f"the mirror{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}" if unknown else ""
