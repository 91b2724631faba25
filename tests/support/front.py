"""A front in this process with a rank that only pretends."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.records import ModelRecord
from tests.support.eventually import eventually
from worker.front.front import Front
from worker.protocol import FrontConfig, FrontStatus
from worker.text.model_text import ModelText

MODEL = "test/tiny-1.0"
FAKE_RANK = (sys.executable, "-m", "tests.support.fake_rank")


class Harness:
    """A front in this process, as its agent sees it."""

    def __init__(self, front: Front, config: FrontConfig, statuses: list[FrontStatus], task: "asyncio.Task[int]"):
        self.front, self.config, self.statuses, self.task = front, config, statuses, task

    @property
    def status(self) -> FrontStatus:
        return self.statuses[-1]

    @property
    def rank_pid(self) -> int:
        return self.status.pids[1]

    async def until(self, predicate: Callable[[FrontStatus], Any], timeout_s: float = 10.0) -> None:
        await eventually(lambda: self.statuses and predicate(self.status), timeout_s)


@asynccontextmanager
async def running(
    broker: EmbeddedBroker, model_dir: Path, *, slots: int = 8, rank: Sequence[str] = FAKE_RANK, **options: Any
) -> AsyncIterator[Harness]:
    config = FrontConfig(
        replica=names.new_id(),
        worker="w1",
        model=ModelRecord(id=MODEL, source=str(model_dir), options=options),
        path=str(model_dir),
        device="cpu",
        threads=1,
        memory_bytes=1 << 30,
        slots=slots,
        prefill_tokens=64,
        nats={},
    )
    statuses: list[FrontStatus] = []
    front = Front(
        config,
        connect=lambda: Bus.connect(broker.bus_settings("worker"), kind="replica", ident=config.replica),
        load_text=lambda: ModelText.load(model_dir, options=options),
        report=statuses.append,
        rank_command=rank,
        pid=os.getpid(),
    )
    harness = Harness(front, config, statuses, asyncio.create_task(front.run()))
    try:
        yield harness
    finally:
        front.stop()
        await asyncio.gather(harness.task, return_exceptions=True)
