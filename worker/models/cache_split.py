"""How the memory of a KV cache is divided between layers that keep every token and layers that keep a window."""

from dataclasses import dataclass

_REUSE_SHARE = 4  # a quarter of what is left goes to windows of sequences that ended, so that they can be gone on with


@dataclass(frozen=True, slots=True)
class CacheNeeds:
    """What blocks cost and what could be used of them.

    `block_bytes` is a block's cost over the layers that keep every token, `window_block_bytes` over those that slide.
    """

    block_bytes: int
    window_block_bytes: int
    window: int  # tokens; of the widest that slides
    block_tokens: int
    slots: int
    step_tokens: int
    context_limit: int

    @property
    def context_blocks(self) -> int:
        """Blocks of one sequence of full length."""
        return -(-self.context_limit // self.block_tokens)

    @property
    def useful_blocks(self) -> int:
        """Blocks that the slots can fill."""
        return self.slots * self.context_blocks

    @property
    def window_blocks_each(self) -> int:
        """Blocks of a window that begins and ends anywhere, and the next one."""
        return -(-self.window // self.block_tokens) + 2


def split(cache_bytes: int, needs: CacheNeeds) -> tuple[int, int]:
    """Blocks of layers that keep every token, and of layers that slide; the second is 0 if they are not to differ.

    The first number is never less than it would be without the difference.
    """
    blocks = min(cache_bytes // (needs.block_bytes + needs.window_block_bytes), needs.useful_blocks)
    step_blocks = -(-needs.step_tokens // needs.block_tokens)
    each = needs.window_blocks_each
    if not needs.window_block_bytes or each >= needs.context_blocks or blocks < each + step_blocks:
        return blocks, 0
    # 1. Windows of all that run at once.
    window_blocks = min(needs.slots * each + step_blocks, blocks)
    left = cache_bytes - window_blocks * needs.window_block_bytes
    # 2. The other layers: one whole context first, then three quarters of the rest.
    full_blocks = needs.useful_blocks
    if needs.block_bytes:
        spare = max(0, left - max(blocks, needs.context_blocks) * needs.block_bytes)
        full_blocks = min((left - min(left // _REUSE_SHARE, spare)) // needs.block_bytes, full_blocks)
    # 3. What is left: windows of sequences that ended.
    left -= full_blocks * needs.block_bytes
    reusable = min(left // needs.window_block_bytes, full_blocks - window_blocks)
    return full_blocks, window_blocks + max(0, reusable)
