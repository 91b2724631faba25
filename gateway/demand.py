"""Tells the placement leader which cold models jobs wait for, and ends jobs for models that will not come."""

import asyncio

import msgspec

from gateway.catalogue import Catalogue
from gateway.dispatch import Dispatcher
from gateway.errors import ApiError, CapacityExceeded, Unavailable
from gateway.tasks import Tasks
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError
from shared.messages import Ensure, Ensured, encode

ASK_S = 1.0
REMIND_S = 2.0  # a leader forgets what it was asked when it is replaced, and what it placed when the worker is lost
AGAIN_S = 0.25  # while there is no leader
PATIENCE_S = 15.0  # a leader is elected within a few seconds

log = logs.get(__name__)
_decode = msgspec.json.Decoder(Ensured).decode


class Demand:
    """One question at a time for each model, from `start` to `close`."""

    def __init__(self, bus: Bus, dispatcher: Dispatcher, catalogue: Catalogue) -> None:
        self._bus = bus
        self._dispatcher = dispatcher
        self._catalogue = catalogue
        self._tasks = Tasks()
        self._asking: set[str] = set()
        self._words: dict[str, Ensured] = {}  # by model, the leader's latest

    def start(self) -> None:
        """Begin to ask again for models that jobs still wait for."""
        self._tasks.spawn(self._remind(), "demand.remind")

    async def close(self) -> None:
        """Stop asking. May be called twice."""
        await self._tasks.close()

    def ask(self, model: str) -> None:
        """Jobs wait for this model, and no replica of it is there."""
        if model not in self._asking:
            self._asking.add(model)
            self._tasks.spawn(self._ask(model), "demand")

    def word(self, model: str) -> Ensured | None:
        """What the placement leader last said of a model that jobs here wait for; None when it was not asked."""
        return self._words.get(model)

    async def _remind(self) -> None:
        while True:
            await asyncio.sleep(REMIND_S)
            waited_for = {flight.model for flight in self._dispatcher.streams.flights.values() if not flight.replica}
            self._words = {model: word for model, word in self._words.items() if model in waited_for}
            for model in waited_for:
                if self._catalogue.state(model) not in ("ready", "loading"):
                    self.ask(model)

    async def _ask(self, model: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        try:
            while loop.time() < deadline:
                try:
                    data = await self._bus.request(names.PLACER_ENSURE, encode(Ensure(model)), timeout_s=ASK_S)
                except BusError:
                    await asyncio.sleep(AGAIN_S)
                    continue
                try:
                    self._told(model, _decode(data))
                except msgspec.MsgspecError as error:
                    log.warning("demand.undecodable", model=model, error=str(error))
                return
            log.warning("demand.unheard", model=model)
            self._words[model] = Ensured("waiting", "no gateway leads placement at this moment")
        finally:
            self._asking.discard(model)

    def _told(self, model: str, answer: Ensured) -> None:
        self._words[model] = answer
        # A model that an operator unloaded may be loaded again: its jobs wait, as the queue is for.
        error: ApiError
        if answer.state == "cannot_fit":
            text = f"No worker of this fleet can run the model {model!r}: {answer.reason}."
            error = CapacityExceeded(text, param="model")
        elif answer.state == "unknown":
            text = f"The model {model!r} is not loaded, and will not be: {answer.reason}."
            error = Unavailable(text, retry_after_s=30)
        else:
            return
        now = self._dispatcher.clock()
        for flight in list(self._dispatcher.streams.flights.values()):
            if flight.model == model and not flight.replica:
                self._dispatcher.perform(flight.id, flight.fail(error, now))
