"""How a model's source is written: a path, a hub repository, or a repository of a mirror that workers know by name."""

import re

USUAL = "huggingface"  # the scheme of the usual hub; the same as none

PATTERN = re.compile(r"/.*|(?:[a-z][a-z0-9_-]*:)?[\w.-]+/[\w.-]+")
_SCHEME = re.compile(r"([a-z][a-z0-9_-]*):(.+)")


def is_scheme(name: str) -> bool:
    """Whether a mirror may be called so."""
    return name != USUAL and _SCHEME.fullmatch(f"{name}:x") is not None


def split(source: str) -> tuple[str, str]:
    """(scheme, the rest): ``lab:org/name`` is ("lab", "org/name"). Of the usual hub, the scheme is empty."""
    found = _SCHEME.fullmatch(source)
    if found is None:
        return "", source
    return ("" if found[1] == USUAL else found[1]), found[2]
