"""The events of a response that runs in the background, kept so that they can be streamed again, from any gateway.

They lie beside the response's record, in runs: each run is one key, `<response>.<number>`, a few events together. A
run is created and never changed, so two gateways cannot both end a response. Whoever follows is told by an empty
message that there is more, and looks.
"""

import asyncio
import zlib
from collections.abc import Sequence

import msgspec

from gateway.errors import Unavailable
from gateway.responses.store import Superseded
from shared import log as logs
from shared import names
from shared.bus import Bus, Msg
from shared.errors import ApiError, BusError, BusTimeout, PayloadTooLarge, WrongRevision
from shared.kv import Bucket

READ_RUNS = 64  # at once
READ_BYTES = 4 << 20
READ_S = 2.0
MAX_RUN = 64 << 20  # bytes of a run, unpacked
_END = b"\n\n"  # of an event; JSON holds no line breaks

log = logs.get(__name__)


class Run(msgspec.Struct, omit_defaults=True):
    """Events that follow each other."""

    first: int  # sequence number of the first one
    frames: str  # as they go out
    is_last: bool = False  # ends with the response's last event
    number: int = 0  # of the run

    @property
    def last(self) -> int:
        """The sequence number of the last one."""
        return self.first + self.frames.count("\n\n") - 1

    def after(self, number: int) -> bytes:
        """The events with higher sequence numbers."""
        data = self.frames.encode()
        if number < self.first:
            return data
        return b"".join(frame + _END for frame in data.split(_END)[number - self.first + 1 : -1])


class EventLog:
    """Reads and writes runs. Methods raise Unavailable when the bus cannot be reached."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, names.RESPONSES)

    async def append(self, response: str, run: Run) -> None:
        """Keep a run, and tell those who follow. Raises Superseded when another has this number, PayloadTooLarge."""
        data = zlib.compress(msgspec.json.encode(run), 1)
        key = names.response_events_key(response, run.number)
        try:
            try:
                await self._bucket.create(key, data)
            except WrongRevision:
                found = await self._bucket.get(key)
                if found is None or found[0] != data:  # else it was we, and the answer was lost
                    raise Superseded(response) from None
            await self._bus.publish(names.response_moved(response), b"")
        except PayloadTooLarge:
            raise
        except BusError as error:
            raise _unreachable(error) from error

    async def read(self, response: str, after: int = 0) -> tuple[list[Run], int]:
        """(some runs, the place after them); `after` is such a place. No runs: there are no more by now."""
        stream = names.bucket_stream(names.RESPONSES)
        subject = names.kv_subject(names.RESPONSES, names.response_events_key(response, "*"))
        request = {"seq": after + 1, "next_by_subj": subject, "batch": READ_RUNS, "max_bytes": READ_BYTES}
        runs: list[Run] = []
        try:
            for message in await self._ask(f"$JS.API.DIRECT.GET.{stream}", request):
                headers: dict[str, str] = message.headers or {}
                after = int(headers[names.SEQUENCE])
                plain = zlib.decompressobj().decompress(message.data, MAX_RUN)
                runs.append(msgspec.json.decode(plain, type=Run))
        except BusError as error:
            raise _unreachable(error) from error
        return runs, after

    async def tail(self, response: str) -> Run | None:
        """The last run; None when there is none."""
        last: Run | None = None
        runs, place = await self.read(response)
        while runs:
            last = runs[-1]
            runs, place = await self.read(response, place)
        return last

    async def forget(self, response: str) -> None:
        """Take all runs away."""
        subject = names.kv_subject(names.RESPONSES, names.response_events_key(response, "*"))
        try:
            await self._bus.api(f"STREAM.PURGE.{names.bucket_stream(names.RESPONSES)}", {"filter": subject})
            await self._bus.publish(names.response_moved(response), b"")
        except BusError as error:
            raise _unreachable(error) from error

    async def _ask(self, subject: str, request: dict[str, object]) -> Sequence[Msg]:
        """The answers to a question that has many."""
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._bus.new_inbox()
        subscription = await self._bus.listen(inbox, answers.put_nowait)
        found: list[Msg] = []
        try:
            await self._bus.publish(subject, msgspec.json.encode(request), reply=inbox)
            while True:
                try:
                    async with asyncio.timeout(READ_S):
                        message = await answers.get()
                except TimeoutError:
                    raise BusTimeout(subject, READ_S) from None
                headers: dict[str, str] = message.headers or {}
                status = headers.get(names.STATUS)
                if status is None:
                    found.append(message)
                elif status in ("204", "404"):
                    return found
                else:
                    raise ApiError(subject, int(status), 0, headers.get("Description", "no message"))
        finally:
            await subscription.unsubscribe()


def _unreachable(error: BusError) -> Unavailable:
    log.warning("events.unreachable", error=str(error))
    return Unavailable("Stored responses cannot be reached at the moment; retry in 5 s.")
