"""Counts of prompt tokens without running anything: any worker answers from the tokenizer, loaded or not."""

import msgspec

from gateway import errors
from shared import log as logs
from shared import names
from shared.bus import Bus
from shared.errors import BusError, BusTimeout, NoResponders, PayloadTooLarge
from shared.fleet import Fleet
from shared.messages import Count, Counted, Prompt, encode
from shared.records import ModelRecord

ANSWER_S = 30.0  # a worker may have to download a tokenizer first
MAX_ASKED = 16  # workers one after another, for a model whose files only some have

log = logs.get(__name__)
_decode = msgspec.json.Decoder(Counted).decode


class Counter:
    """Asks the fleet's workers."""

    def __init__(self, bus: Bus, fleet: Fleet) -> None:
        self._bus = bus
        self._fleet = fleet

    async def count(self, model: ModelRecord, prompt: Prompt) -> int:
        """The number of tokens of a prompt as the model would read it. Raises InvalidRequest or Unavailable.

        1. Any worker. 2. Where that one lacks the model's files: those that run it, then all others, one by one.
        """
        payload = encode(Count(model, prompt))
        answer = await self._ask(names.COUNT, payload)
        if answer.problem == "elsewhere":
            for worker in self._candidates(model.id)[:MAX_ASKED]:
                try:
                    answer = await self._ask(names.worker_count(worker), payload)
                except errors.Unavailable:
                    continue
                if answer.problem != "elsewhere":
                    break
        if answer.problem == "invalid_request":
            raise errors.InvalidRequest(answer.message, param=answer.param)
        if answer.problem:
            raise errors.Unavailable(f"The tokens cannot be counted: {answer.message}.")
        return answer.tokens

    def _candidates(self, model: str) -> list[str]:
        having = {replica.worker for replica in self._fleet.replicas_of(model)}
        return sorted(self._fleet.workers, key=lambda worker: (worker not in having, worker))

    async def _ask(self, subject: str, payload: bytes) -> Counted:
        try:
            return _decode(await self._bus.request(subject, payload, timeout_s=ANSWER_S))
        except PayloadTooLarge as error:
            raise errors.JobTooLarge(error.size, error.limit) from None
        except NoResponders:
            raise errors.Unavailable(
                "The tokens cannot be counted: no worker is connected. Start one (plexus-worker), then ask again."
            ) from None
        except BusTimeout:
            raise errors.Unavailable(f"The tokens were not counted within {ANSWER_S:g} s; ask again.") from None
        except (BusError, msgspec.MsgspecError) as error:
            log.warning("count.failed", subject=subject, error=str(error))
            raise errors.Unavailable(
                "The tokens cannot be counted: the workers cannot be reached; ask again."
            ) from None
