"""What models will take, asked of any worker before their first load. Workers read headers, no weights."""

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec

from gateway.placement import rules
from gateway.placement.view import Size, View, variant
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError, NoResponders
from shared.messages import Estimate, Estimated, encode
from shared.records import ModelRecord

ASK_S = 15.0  # a worker may have to fetch the headers of large files from a hub
WAIT_S = 2.0  # how long somebody who asks about a model waits for it
TRIES = 3
AGAIN_S = 60.0  # after no answer, or one without figures
MAX_KNOWN = 10_000

_Key = tuple[str, str]  # model id and variant

log = logs.get(__name__)
_decode = msgspec.json.Decoder(Estimated).decode


class Sizes:
    """Estimates by model, asked for once, in the background, until `close`.

    A model waits for its answer (`open`). If there is none, it is placed where most memory is free.
    """

    def __init__(self, bus: Bus, changed: Callable[[], None]) -> None:
        """`changed` is called after each answer."""
        self._bus = bus
        self._changed = changed
        self._known: dict[_Key, Size] = {}
        self._silent: dict[_Key, float] = {}  # until, monotonic
        self._asking: dict[_Key, asyncio.Event] = {}
        self._tasks = Tasks()

    async def close(self) -> None:
        """Ask no more. May be called twice."""
        await self._tasks.close()

    def of(self, models: Mapping[str, ModelRecord]) -> dict[str, Size]:
        """What is known of these models."""
        found = {id: self._known.get(_key(model)) for id, model in models.items()}
        return {id: size for id, size in found.items() if size is not None}

    def open(self, models: Mapping[str, ModelRecord]) -> set[str]:
        """Those of which an answer is still to come, or to be asked for."""
        return {id for id, model in models.items() if self._is_open(_key(model))}

    def learn(self, view: View) -> None:
        """Ask for the models that have to be placed and of which neither a load nor an estimate is known."""
        placed = {one.model.id for want in view.wants.values() for one in want.models}
        wanted = set(view.asked) | set(view.intents) | {id for id, jobs in view.backlog.items() if jobs.queued}
        wanted |= {id for id, model in view.models.items() if model.min_replicas}
        for id in sorted((wanted - placed) & view.models.keys()):
            self._begin(view, view.models[id])

    async def find(self, view: View, model: str) -> None:
        """Wait a little for what is to be known of one model."""
        if model in view.models and (answered := self._begin(view, view.models[model])):
            try:
                async with asyncio.timeout(WAIT_S):
                    await answered.wait()
            except TimeoutError:
                log.info("estimate.late", model=model)

    def _begin(self, view: View, model: ModelRecord) -> asyncio.Event | None:
        """Ask, unless that would tell nothing new. Returns what is set when there is an answer."""
        key = _key(model)
        known = view.measured.get(model.id)
        if not view.workers or not self._is_open(key) or (known is not None and known.variant == key[1]):
            return None
        if key not in self._asking:
            kinds = {device.kind for worker in view.workers.values() for device in worker.devices}
            self._asking[key] = asyncio.Event()
            kind = "cuda" if "cuda" in kinds else "cpu"
            self._tasks.spawn(self._ask(key, model, kind, _subjects(view, model)), "placement.size")
        return self._asking[key]

    def _is_open(self, key: _Key) -> bool:
        return key not in self._known and self._silent.get(key, 0.0) < time.monotonic()

    async def _ask(self, key: _Key, model: ModelRecord, kind: str, subjects: list[str]) -> None:
        if len(self._known) + len(self._silent) >= MAX_KNOWN:
            self._known.clear()
            self._silent.clear()
        size: Size | None = None
        try:
            size = await self._answer(model, kind, subjects)
        finally:
            if size is not None:
                self._known[key] = size
                self._silent.pop(key, None)
            else:
                self._silent[key] = time.monotonic() + AGAIN_S
            self._asking.pop(key).set()
            self._changed()

    async def _answer(self, model: ModelRecord, kind: str, subjects: list[str]) -> Size | None:
        request = encode(Estimate(model, "cuda" if kind == "cuda" else "cpu"))
        answer: Estimated | None = None
        for subject in subjects:  # whoever answers may lack what others have: the directory, a token
            try:
                answer = _decode(await self._bus.request(subject, request, timeout_s=ASK_S))
            except NoResponders:
                continue  # it tells no sizes
            except (BusError, msgspec.MsgspecError) as error:
                log.warning("estimate.unheard", model=model.id, error=str(error))
                return None
            if not answer.error:
                break
        if answer is None:
            return None
        if answer.error or not answer.minimum_bytes:
            log.warning("estimate.none", model=model.id, reason=answer.error)
            return None
        least = answer.minimum_bytes
        return Size(minimum_bytes=least, wanted_bytes=max(answer.wanted_bytes, least))


def _subjects(view: View, model: ModelRecord) -> list[str]:
    """Whom to ask, one after another: any worker, or where not all may run it or know its mirror, those that do."""
    able = [
        name
        for name, worker in sorted(view.workers.items())
        if not rules.is_barred(view, model, name) and not rules.lacks_mirror(model, worker)
    ]
    is_special = 0 < len(able) < len(view.workers)
    chosen = [names.worker_estimate(name) for name in able[: TRIES - 1]] if is_special else []
    return chosen + [names.ESTIMATE] * (TRIES - len(chosen))


def _key(model: ModelRecord) -> _Key:
    return (model.id, variant(model))
