"""A real gateway inside a test, over a real nats-server and a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import orjson

from gateway.serve import serve
from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.kv import Bucket
from shared.messages import encode
from shared.records import IntentRecord, ModelRecord
from shared.settings import GatewaySettings

MODEL = "acme/fake-1"


@dataclass
class Running:
    """A gateway that serves."""

    id: str
    url: str
    metrics_url: str
    http: httpx.AsyncClient
    task: "asyncio.Task[None]"

    def chat(self, **fields: Any) -> dict[str, Any]:
        """A chat body."""
        return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}

    async def ask(self, **fields: Any) -> httpx.Response:
        """POST a chat and read the whole answer."""
        return await self.http.post("/v1/chat/completions", json=self.chat(**fields))

    async def metric(self, line: str) -> float:
        """The value of a metric, by the start of its line."""
        text = (await self.http.get(self.metrics_url)).text
        return next((float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line)), 0.0)


@asynccontextmanager
async def running_gateway(broker: EmbeddedBroker, **overrides: Any) -> AsyncIterator[Running]:
    """A gateway in this process, ready; ended at the end."""
    settings = GatewaySettings(
        listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", bus=broker.bus_settings("gateway"), **overrides
    )
    ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(settings, on_ready=ready.set_result))
    task.add_done_callback(lambda _: ready.cancel())  # when it cannot start
    try:
        where = await ready
    except asyncio.CancelledError:
        task.result()
        raise
    async with httpx.AsyncClient(base_url=where["url"], timeout=30) as http:
        try:
            yield Running(where["gateway"], where["url"], where["metrics_url"], http, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def put_model(
    bus: Bus, model: str = MODEL, want: Literal["loaded", "unloaded"] | None = None, **fields: Any
) -> None:
    """A model in the catalogue, and what is wanted of it."""
    plan = Bucket(bus, names.PLAN)
    fields = {"source": f"/models/{model}"} | fields
    await plan.put(names.model_key(model), encode(ModelRecord(id=model, **fields)))
    if want is not None:
        await plan.put(names.intent_key(model), encode(IntentRecord(model=model, want=want)))


class EventStream:
    """An SSE answer as it comes: events one at a time, comments apart."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self.events: list[Any] = []
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        """The next event: a decoded chunk, the text ``[DONE]``, or None at the end of the stream."""
        async for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
            elif line.startswith("data: "):
                text = line.removeprefix("data: ")
                event = text if text == "[DONE]" else orjson.loads(text)
                self.events.append(event)
                return event
            else:
                assert line == "", f"no line of an event stream: {line!r}"
        return None

    async def rest(self) -> list[Any]:
        """Every event to the end of the stream."""
        while await self.next() is not None:
            pass
        return self.events

    async def content(self, num_chunks: int) -> str:
        """The content of the next chunks that have any."""
        text = ""
        while num_chunks:
            event = await self.next()
            assert isinstance(event, dict), f"the stream ended early: {event!r}"
            if piece := event["choices"][0]["delta"].get("content"):
                text += piece
                num_chunks -= 1
        return text


def text_in(events: list[Any], choice: int = 0) -> str:
    """The content of a choice in the chunks of a stream."""
    chunks = [one for event in events if isinstance(event, dict) for one in event.get("choices", [])]
    return "".join(one["delta"].get("content") or "" for one in chunks if one["index"] == choice)
