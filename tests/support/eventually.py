"""Wait for something that cannot be awaited."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


async def eventually(condition: Callable[[], Any], timeout_s: float = 5.0, pause_s: float = 0.01) -> Any:
    """The first true result of `condition` (a plain or an async function); AssertionError when there is none in time.

    Exceptions of the condition count as not yet.
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if inspect.isawaitable(last):
                last = await last
        except Exception as error:
            last = error
        else:
            if last:
                return last
        await asyncio.sleep(pause_s)
    raise AssertionError(f"did not come true within {timeout_s:g} s; last: {last!r}")
