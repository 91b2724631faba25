"""One response under way in the background: from the events of its job to its stored record, and to its kept events.

Whatever happens, the record becomes final, and then the last event is kept: whoever has seen that finds the record.
The exception is a response that was deleted, or that another gateway has ended: of that nothing more is written.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from gateway import sight
from gateway.dialects.openai_responses_answer import Stream, ending, failed, skeleton
from gateway.errors import ApiError, InternalError
from gateway.request import Broken, Finished, InferenceRequest, Opened, Waiting
from gateway.responses.recorder import Recorder
from gateway.responses.store import Owned, Superseded, TooLargeToStore
from gateway.streams import Reader
from shared import log as logs

AGAIN_S = 0.5
PATIENCE_S = 60.0  # for the final record, while the bus is away

log = logs.get(__name__)


class Work:
    """Make it, await `begin`, then `run` it in a task."""

    def __init__(
        self, request: InferenceRequest, identifier: str, created: int, owned: Owned, recorder: Recorder | None
    ) -> None:
        self._request = request
        self._id = identifier
        self._created = created
        self._owned = owned
        self._recorder = recorder
        self._writer = Stream(request, identifier, created)
        self._response: dict[str, Any] = {}  # once it is over
        self._last = (0, b"")  # the last events, with the number of the first of them
        self._is_void = False  # deleted, or ended by another
        self._is_gone = False  # deleted

    async def begin(self) -> None:
        """Store it as queued. Raises ApiError."""
        await self._owned.put(skeleton(self._request, self._id, self._created, "queued"))
        self._record(self._writer.queue())

    async def run(
        self, reader: Reader, cancel: Callable[[], None], timed: Callable[[Finished], Finished]
    ) -> ApiError | None:
        """To its end. Returns the error that it ended with. `cancel` ends the job, `timed` completes its timings."""
        error: ApiError | None = None
        try:
            error = await self._read(reader, cancel, timed)
        except Exception:
            log.exception("response.crashed", response=self._id, model=self._request.model)
            error = InternalError()
            self._fail(error)
        finally:
            cancel()
            if not self._response:
                first = self._writer.number
                self._end(first, self._writer.cancel())
            await self._close()
        return error

    async def _read(
        self, reader: Reader, cancel: Callable[[], None], timed: Callable[[Finished], Finished]
    ) -> ApiError | None:
        """Returns the error of a job that failed; None when it is done, or was cancelled."""
        while events := await reader.events():
            for event in events:
                if isinstance(event, Waiting):
                    continue
                if isinstance(event, Broken):
                    event = Broken(sight.placed(event.error, self._request))
                elif isinstance(event, Finished):
                    event = timed(event)
                first, data = self._writer.number, self._writer.write(event)
                if self._writer.has_ended:
                    self._end(first, data)
                    return event.error if isinstance(event, Broken) else None
                self._record(data, first)
                if isinstance(event, Opened):
                    await self._store_running()
            if self._recorder is not None and self._recorder.is_void:
                self._is_void = True
            if self._is_void:
                cancel()
        return None

    async def _store_running(self) -> None:
        try:
            await self._owned.put(skeleton(self._request, self._id, self._created, "in_progress"))
        except Superseded as error:
            self._void(error)
        except ApiError as error:
            log.warning("response.not_stored", response=self._id, error=error.message)

    def _record(self, data: bytes, first: int = 0) -> None:
        if self._recorder is not None:
            self._recorder.add(first, data)

    def _end(self, first: int, data: bytes) -> None:
        """The writer is done."""
        assert self._writer.response is not None
        self._response, self._last = self._writer.response, (first, data)

    def _fail(self, error: ApiError) -> None:
        """It cannot end as its writer would have it."""
        number = self._last[0] or self._writer.number
        self._response = failed(self._request, self._id, self._created, error)
        self._last = (number, ending(self._response, number))

    def _void(self, error: Superseded) -> None:
        self._is_void, self._is_gone = True, error.is_gone

    async def _close(self) -> None:
        """The record, then the last event."""
        if not self._is_void:
            await self._store_final()
        if self._recorder is None:
            return
        if not self._is_void:
            await self._recorder.finish(*self._last)
            return
        await self._recorder.stop()
        if self._is_gone:  # events may have been written since
            with contextlib.suppress(ApiError):
                await self._recorder.forget()

    async def _store_final(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        num_refused = 0
        while True:
            try:
                await self._owned.put(self._response)
                return
            except Superseded as error:
                self._void(error)
                return
            except TooLargeToStore as error:
                num_refused += 1
                if num_refused == 2:
                    self._owned.forget_conversation()
                elif num_refused > 2:
                    log.warning("response.not_stored", response=self._id, error=error.message)
                    return
                self._fail(error)
            except ApiError as error:
                if loop.time() > until:
                    log.warning("response.not_stored", response=self._id, error=error.message)
                    return
                await asyncio.sleep(AGAIN_S)
