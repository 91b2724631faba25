"""The prefix index: which block holds the keys and values of which tokens.

A block is named by a hash over its own tokens and the name of the block before it, so equal names mean equal contents
from position 0 on. Blocks that nobody uses any more stay known, in order of last use, until their room is needed.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def name_block(parent: bytes, ids: Sequence[int]) -> bytes:
    """The name of a block that holds these tokens behind the block `parent` (b"": at position 0)."""
    return _name(parent, array("q", ids).tobytes())


def extend_chain(chain: list[bytes], ids: list[int], block_tokens: int, num_blocks: int) -> None:
    """Append to `chain` the names of further full blocks of `ids`, up to `num_blocks` names."""
    data = array("q", ids[len(chain) * block_tokens : num_blocks * block_tokens]).tobytes()
    size = 8 * block_tokens
    parent = chain[-1] if chain else b""
    for start in range(0, len(data), size):
        parent = _name(parent, data[start : start + size])
        chain.append(parent)


def _name(parent: bytes, data: bytes) -> bytes:
    return blake2b(parent + data, digest_size=16).digest()


class PrefixIndex:
    """Names ⇄ blocks, and the idle ones among them, least recently used first."""

    def __init__(self) -> None:
        self._block: dict[bytes, int] = {}
        self._name: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Known blocks that nobody uses."""
        return len(self._idle)

    def find(self, name: bytes) -> int | None:
        """The block of this name."""
        return self._block.get(name)

    def add(self, name: bytes, block: int) -> bool:
        """Make a block known, also one that was known under the name of fewer tokens.

        The first block of a name stays the known one; False if this one is not it.
        """
        if name in self._block:
            return self._block[name] == block
        if block in self._name:
            del self._block[self._name[block]]
        self._block[name] = block
        self._name[block] = name
        return True

    def is_idle(self, block: int) -> bool:
        """Whether the block is known and unused."""
        return block in self._idle

    def park(self, block: int) -> bool:
        """Nobody uses the block any more; False if it is not known, and so not worth keeping."""
        if block not in self._name:
            return False
        self._idle[block] = None
        return True

    def unpark(self, block: int) -> None:
        """An idle block is used again."""
        del self._idle[block]

    def evict(self) -> tuple[bytes, int]:
        """Forget the block that was idle for longest; its name and number."""
        block, _ = self._idle.popitem(last=False)
        name = self._name.pop(block)
        del self._block[name]
        return name, block
