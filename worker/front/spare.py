"""A rank that is started before its front has a configuration, so that a load begins with everything imported."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from worker.channel import ChannelClosed
from worker.front.errors import RankFault
from worker.front.rank_link import RANK, RankLink
from worker.protocol import FrontStatus, Loading

WARM = "warm"  # the stage that tells the agent


async def warm_until(
    frame: Coroutine[Any, Any, bytes], report: Callable[[FrontStatus], None], command: Sequence[str] = RANK
) -> tuple[RankLink, bytes]:
    """A rank, warm unless the frame came first, and the frame that was waited for meanwhile.

    Raises RankFault if the rank ends, and what `frame` raises.
    """
    async with contextlib.AsyncExitStack() as stack:
        reading = asyncio.ensure_future(frame)
        stack.push_async_callback(_cancel, reading)
        rank = await stack.enter_async_context(RankLink([*command, "--warm"]))
        report(FrontStatus(state="loading", stage="start", pids=[os.getpid(), rank.pid]))
        ending = asyncio.ensure_future(_watch(rank, report))
        stack.push_async_callback(_cancel, ending)
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await ending  # raises
        taken = reading.result()
        # What the rank says now is for whoever has it next.
        await _cancel(ending)
        stack.pop_all()  # the rank goes on
        return rank, taken


async def _watch(rank: RankLink, report: Callable[[FrontStatus], None]) -> None:
    """Tell the agent when the rank is warm. Raises RankFault when it has ended."""
    await _until_warm(rank)
    report(FrontStatus(state="loading", stage=WARM, pids=[os.getpid(), rank.pid]))
    raise RankFault(f"a rank without work ended with status {await rank.ended()}")


async def _until_warm(rank: RankLink) -> None:
    with contextlib.suppress(ChannelClosed):
        while await rank.receive() != Loading(WARM):
            pass
        return
    raise RankFault(f"a rank without work ended: {rank.reason or await rank.ended()}")


async def _cancel(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    await asyncio.wait({task})
