"""The least that an owner of jobs must do: publish them, gather their items, mend gaps, answer claims and pings."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from shared import messages, names
from shared.bus import Bus, Msg
from shared.messages import (
    Accepted,
    Cancel,
    Claim,
    Claimed,
    Confirm,
    Delta,
    DeltaBatch,
    Done,
    Failed,
    Item,
    Job,
    OwnerRequest,
    Ping,
    Pong,
    Prompt,
    Replay,
    Replayed,
    Sampling,
)

_decode_batch = msgspec.json.Decoder(DeltaBatch).decode
_decode_request = msgspec.json.Decoder(OwnerRequest).decode
_decode_replayed = msgspec.json.Decoder(Replayed).decode
_decode_pong = msgspec.json.Decoder(Pong).decode


class Stream:
    """What came of one job."""

    def __init__(self, num_choices: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(num_choices)]
        self.text = [""] * num_choices
        self.finish: list[str | None] = [None] * num_choices
        self.accepted: list[Accepted] = []
        self.verdicts: list[Done | Failed] = []
        self.items: list[Item] = []
        self.num_gaps = 0
        self.replica = ""

    def take(self, item: Item) -> bool:
        """Take an item in; False when something before it is missing."""
        self.items.append(item)
        match item:
            case Accepted():
                self.accepted.append(item)
            case Delta():
                held = len(self.ids[item.choice])
                if item.start > held:
                    self.num_gaps += 1
                    return False
                if item.start == held and self.finish[item.choice] is None:
                    self.ids[item.choice] += item.ids
                    self.text[item.choice] += item.text
                    self.finish[item.choice] = item.finish
            case Done() | Failed():
                self.verdicts.append(item)
                return isinstance(item, Failed) or sum(map(len, self.ids)) == item.usage.completion_tokens
        return True


class Owner:
    """A gateway in miniature."""

    def __init__(self, bus: Bus, model: str) -> None:
        self.id = names.new_id()
        self.model = model
        self.bus = bus
        self.streams: dict[str, Stream] = {}
        self.seqs: dict[str, int] = {}
        self.claims: list[Claim] = []
        self.on_claim: Callable[[Claim], Claimed] = lambda claim: Claimed(drop=True)
        self.auto_confirm = True
        self.auto_replay = True
        self._attempts: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> "Owner":
        """Listen."""
        self.subscriptions = [
            await self.bus.subscribe(names.delta_subject(self.id), self._on_batch),
            await self.bus.subscribe(names.gateway_rpc(self.id), self._on_request),
        ]
        return self

    async def vanish(self) -> None:
        """Listen no more, as a gateway that died."""
        for subscription in self.subscriptions:
            await subscription.unsubscribe()

    def job(self, prompt: str | list[int] = "Hello there", *, max_tokens: int = 20, **fields: Any) -> Job:
        """A job of this owner."""
        sampling = {k: fields.pop(k) for k in list(fields) if k in Sampling.__struct_fields__}
        given = Prompt(text=prompt) if isinstance(prompt, str) else Prompt(ids=prompt)
        values: dict[str, Any] = {
            "id": names.new_id(),
            "model": self.model,
            "reply": names.delta_subject(self.id),
            "owner": names.gateway_rpc(self.id),
            "prompt": given,
            "sampling": Sampling(max_tokens=max_tokens, **sampling),
            "published_s": time.time(),
        }
        return Job(**(values | fields))

    async def submit(self, job: Job) -> Stream:
        """Publish a job."""
        await self.bus.ensure_consumer(job.model, job.job_class)
        stream = self.streams.setdefault(job.id, Stream(job.sampling.n))
        self._attempts[job.id] = job.attempt
        self.seqs[job.id] = await self.bus.enqueue(
            names.job_subject(job.model, job.job_class),
            messages.encode(job),
            msg_id=f"{job.id}.{job.attempt}",
            ttl_s=60,
        )
        return stream

    async def until(self, predicate: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Wait for something that items bring about."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(predicate)

    async def finished(self, stream: Stream, timeout_s: float = 10.0) -> Done | Failed:
        """Wait for the verdict."""
        await self.until(lambda: stream.verdicts, timeout_s)
        return stream.verdicts[-1]

    async def tell(self, stream: Stream, request: Cancel | Confirm) -> None:
        """A message to the replica that runs a job."""
        await self.bus.publish(names.replica_rpc(stream.replica), messages.encode(request))

    async def ping(self, replica: str) -> Pong:
        """Where a replica is."""
        return _decode_pong(await self.bus.request(names.replica_rpc(replica), messages.encode(Ping()), timeout_s=5.0))

    async def replay(self, job: str, attempt: int, positions: list[int], replica: str) -> Replayed:
        """What a replica has of a job."""
        request = messages.encode(Replay(job, attempt, positions))
        return _decode_replayed(await self.bus.request(names.replica_rpc(replica), request, timeout_s=2.0))

    async def _on_batch(self, message: Msg) -> None:
        batch = _decode_batch(message.data)
        for item in batch.items:
            stream = self.streams.get(item.job)
            if stream is None or item.attempt != self._attempts[item.job]:
                continue
            stream.replica = batch.replica
            if not stream.take(item) and self.auto_replay:
                task = asyncio.create_task(self._mend(item.job, item.attempt, stream))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(item, Done) and self.auto_confirm:
                await self.tell(stream, Confirm([(item.job, item.attempt)]))
        await self._notify()

    async def _mend(self, job: str, attempt: int, stream: Stream) -> None:
        answer = await self.replay(job, attempt, [len(ids) for ids in stream.ids], stream.replica)
        assert not answer.gone
        for item in answer.items:
            assert stream.take(item)
            if isinstance(item, Done) and self.auto_confirm:
                await self.tell(stream, Confirm([(job, attempt)]))
        await self._notify()

    async def _on_request(self, message: Msg) -> None:
        request = _decode_request(message.data)
        if isinstance(request, Ping):
            await message.respond(messages.encode(Pong()))
            return
        self.claims.append(request)
        claimed = self.on_claim(request)
        if not claimed.drop:
            self._attempts[request.job] = claimed.attempt
        await message.respond(messages.encode(claimed))
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
