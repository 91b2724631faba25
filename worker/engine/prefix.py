"""The prefix index: which block holds the keys and values of which tokens.

A full block is named by a hash over its own tokens and the name of the block before it, so equal names mean equal
contents from position 0 on. Blocks that nobody uses any more stay known, in order of last use, until their room is
needed.
"""

from array import array
from collections import OrderedDict
from hashlib import blake2b


def extend_chain(chain: list[bytes], ids: list[int], block_tokens: int, num_blocks: int) -> None:
    """Append to `chain` the names of further full blocks of `ids`, up to `num_blocks` names."""
    for index in range(len(chain), num_blocks):
        tokens = array("q", ids[index * block_tokens : (index + 1) * block_tokens]).tobytes()
        chain.append(blake2b((chain[-1] if chain else b"") + tokens, digest_size=16).digest())


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

    def match(self, chain: list[bytes]) -> list[int]:
        """The blocks of the longest known beginning of `chain`."""
        blocks: list[int] = []
        for name in chain:
            block = self._block.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def add(self, name: bytes, block: int) -> None:
        """Make a block known; the first block of a name stays the known one."""
        if name not in self._block and block not in self._name:
            self._block[name] = block
            self._name[block] = name

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

    def evict(self) -> int:
        """Forget the block that was idle for longest, and return it."""
        block, _ = self._idle.popitem(last=False)
        del self._block[self._name.pop(block)]
        return block
