"""A follower that runs out of memory in the middle of a step with a certain prompt.

Started like the real one (``python -m tests.support.failing_follower --channel-fd N --parent-pid P``).
"""

import os
import sys
from typing import Any

TOKEN = 252  # how the prompt begins


def fail_at(token: int) -> None:
    """Have plain decoders of this process fail in their second layer, where a prompt begins with this token."""
    from worker.engine.fast.plain_decoder import BoundPlainDecoder

    attend, forward = BoundPlainDecoder._attend, BoundPlainDecoder.forward
    is_bad = False

    def watch(self: BoundPlainDecoder, packed: Any) -> Any:
        nonlocal is_bad
        is_bad = (token, 0) in zip(packed.ids, packed.positions, strict=True)
        return forward(self, packed)

    def fail(self: BoundPlainDecoder, number: int, *rest: Any) -> Any:
        if is_bad and number == 1:
            raise MemoryError("no room for this")
        return attend(self, number, *rest)

    BoundPlainDecoder.forward, BoundPlainDecoder._attend = watch, fail  # type: ignore[method-assign]


if __name__ == "__main__":
    from worker.engine.parallel import follower

    class _Failing(follower.Follower):
        def __init__(self, join: Any) -> None:
            super().__init__(join)
            fail_at(TOKEN)

    follower.Follower = _Failing  # type: ignore[misc]
    code = follower.main()
    sys.stderr.flush()
    os._exit(code)
