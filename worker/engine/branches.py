"""What is known to follow a block: by this a prompt finds a block of which it shares only the beginning."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

_MAX_SEEN = 32  # followers looked at, the newest first; a system prompt's last block may have thousands


class Shared(NamedTuple):
    """A known block and how many of its first tokens are the wanted ones."""

    name: bytes
    num_tokens: int


class Branches:
    """For each block's name (b"": the beginning) the known blocks behind it, with their tokens."""

    def __init__(self) -> None:
        self._followers: dict[bytes, OrderedDict[bytes, array[int]]] = {}
        self._parent: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, parent: bytes, name: bytes, ids: Sequence[int]) -> None:
        """A block became known."""
        if name not in self._parent:
            self._parent[name] = parent
            self._followers.setdefault(parent, OrderedDict())[name] = array("q", ids)

    def remove(self, name: bytes) -> None:
        """A block is not known any more, or under another name."""
        parent = self._parent.pop(name, None)
        if parent is None:
            return
        followers = self._followers[parent]
        del followers[name]
        if not followers:
            del self._followers[parent]

    def find(self, parent: bytes, ids: Sequence[int]) -> Shared | None:
        """The known block behind `parent` that begins with most of these tokens; None: none shares the first."""
        best: Shared | None = None
        for _, (name, tokens) in zip(range(_MAX_SEEN), reversed(self._followers.get(parent, {}).items()), strict=False):
            common = _common(tokens, ids)
            if common > (best.num_tokens if best else 0):
                best = Shared(name, common)
        return best


def _common(tokens: Sequence[int], ids: Sequence[int]) -> int:
    count = 0
    for token, wanted in zip(tokens, ids, strict=False):
        if token != wanted:
            break
        count += 1
    return count
