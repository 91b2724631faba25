"""What a model would take, asked on the bus before anybody loads it, answered from configuration and headers."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from shared import names, sources
from shared.bus import Bus, Msg, Subscription
from shared.errors import PlexusError
from shared.log import get
from shared.messages import Estimate, Estimated, encode
from shared.records import ModelRecord
from shared.settings import WorkerSettings
from worker.agent.fetching import FETCH, fetch, with_draft
from worker.agent.sizing import estimate
from worker.models.errors import ModelError

log = get(__name__)

MAX_OPEN = 32  # questions at once
MAX_KNOWN = 1000  # answers that are kept
HEADERS = "headers"  # in the state directory: what is known of models that are not here
_BUSY = encode(Estimated(error="this worker estimates too many models already; ask again"))


class Estimates:
    """`async with` listens and answers."""

    def __init__(self, bus: Bus, worker: str, settings: WorkerSettings, command: Sequence[str] = FETCH) -> None:
        self._bus = bus
        self._worker = worker
        self._settings = settings
        self._command = command
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: dict[bytes, bytes] = {}  # answers by question; only of sources that do not change
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> "Estimates":
        self._subscriptions = [
            await self._bus.subscribe(names.ESTIMATE, self._on_message, queue=names.ESTIMATE_QUEUE),
            await self._bus.subscribe(names.worker_estimate(self._worker), self._on_message),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            return
        if len(self._tasks) >= MAX_OPEN:
            await message.respond(_BUSY)
            return
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Msg) -> None:
        answer = self._known.get(message.data)
        if answer is None:
            estimated = await self.of(message.data)
            answer = encode(estimated)
            if not estimated.error:
                self._keep(message.data, answer)
        with contextlib.suppress(Exception):  # the bus may be gone, and with it whoever asked
            await message.respond(answer)

    async def of(self, question: bytes) -> Estimated:
        """The answer to an encoded `Estimate`; whatever is wrong is its `error`."""
        try:
            asked = msgspec.json.decode(question, type=Estimate)
            model = asked.model
            path = await self._look(model)
            model = await with_draft(model, self._look)
            return await asyncio.to_thread(
                estimate,
                path,
                model,
                device_kind=asked.device_kind,
                slots=self._settings.slots,
                prefill_tokens=self._settings.prefill_tokens,
            )
        except (PlexusError, ModelError, msgspec.MsgspecError, OSError) as error:
            return Estimated(error=str(error))
        except Exception as error:  # of a strange model; the agent goes on
            log.exception("estimate.failed")
            return Estimated(error=f"{type(error).__name__}: {error}")

    async def _look(self, model: ModelRecord) -> Path:
        return await fetch(
            model,
            lambda done, total: None,
            self._command,
            headers=self._settings.state_dir / HEADERS,
            mirrors=self._settings.sources,
        )

    def _keep(self, question: bytes, answer: bytes) -> None:
        source = msgspec.json.decode(question, type=Estimate).model.source
        if sources.is_path(source):  # a directory may change, and reading it costs milliseconds
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[question] = answer
