"""The peer without a queue: one FastAPI process that makes the same text itself and streams it, one token an event.

``python -m tests.bench.direct_server PORT TOKENS_PER_S`` (0: as fast as the loop goes). What it leaves out is what the
comparison is about: no queue, no second process, no tokeniser, no supervision.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

WORDS = [f" word{i}" for i in range(64)]


def build(tokens_per_s: float) -> FastAPI:
    """The application; each stream emits at `tokens_per_s`, or unpaced at 0."""
    app = FastAPI()

    async def stream(model: str, max_tokens: int) -> AsyncIterator[bytes]:
        head = {"id": "chatcmpl-direct", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

        def event(delta: dict[str, str], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return b"data: " + orjson.dumps({**head, "choices": [choice]}) + b"\n\n"

        yield event({"role": "assistant", "content": ""})
        start = time.monotonic()
        for i in range(max_tokens):
            if tokens_per_s:
                await asyncio.sleep(max(0.0, start + (i + 1) / tokens_per_s - time.monotonic()))
            elif i % 8 == 7:
                await asyncio.sleep(0)  # let the other streams go on
            yield event({"content": WORDS[i % len(WORDS)]})
        yield event({}, "length")
        yield b"data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = orjson.loads(await request.body())
        tokens = body.get("max_tokens") or 64
        if not body.get("stream"):
            text = "".join(WORDS[i % len(WORDS)] for i in range(tokens))
            message = {"role": "assistant", "content": text}
            return Response(
                orjson.dumps(
                    {
                        "id": "chatcmpl-direct",
                        "object": "chat.completion",
                        "created": int(time.time()),
                        "model": body["model"],
                        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
                        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
                    }
                ),
                media_type="application/json",
            )
        return StreamingResponse(stream(body["model"], tokens), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    uvicorn.run(
        build(float(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        loop="uvloop",
        http="httptools",
    )
