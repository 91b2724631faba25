"""The version of this installation."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def own_version() -> str:
    """As the distribution has it. Read once: heartbeats carry it, and finding it takes two thousand calls."""
    try:
        return version("plexus-fleet")
    except PackageNotFoundError:
        return "0+source"
