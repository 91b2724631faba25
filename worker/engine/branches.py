"""What is known to follow a block: by this a prompt finds a block of which it shares only the beginning."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
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
        followers = self._followers.get(parent)
        if not followers or not ids:
            return None
        best, most, wanted = None, 0, array("q", ids)
        for name, tokens in islice(reversed(followers.items()), _MAX_SEEN):
            if tokens[: most + 1] == wanted[: most + 1]:  # else it shares no more than the best
                most = _common(tokens, wanted)
                best = Shared(name, most)
                if most == len(wanted):
                    break
        return best


def _common(tokens: "array[int]", wanted: "array[int]") -> int:
    """How many first tokens are the same. Whole stretches are compared: a block may have hundreds."""
    same, stop = 0, min(len(tokens), len(wanted))
    if tokens[:stop] == wanted[:stop]:
        return stop
    while stop - same > 1:  # the first `same` are the same, the first `stop` are not
        middle = (same + stop) // 2
        if tokens[same:middle] == wanted[same:middle]:
            same = middle
        else:
            stop = middle
    return same
