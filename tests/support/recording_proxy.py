"""A proxy that keeps what passes through it: between a client that cannot be asked and a gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "expect"}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request and the status of its answer."""

    method: str
    path: str  # with the query
    headers: dict[str, str]
    body: Any  # as JSON; None of no body
    status: int


@dataclass
class Recorder:
    """Where clients go, and what they sent, in the order in which answers began."""

    url: str
    requests: list[Recorded] = field(default_factory=list)

    def posts(self) -> list[Recorded]:
        """Requests with a body."""
        return [one for one in self.requests if one.method == "POST"]


class _Proxy:
    def __init__(self, http: httpx.AsyncClient, recorder: Recorder) -> None:
        self._http = http
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        request = Request(scope, receive)
        raw = await request.body()
        path = scope["path"] + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _OF_ONE_CONNECTION}
        asked = self._http.build_request(request.method, path, headers=headers, content=raw or None)
        answer = await self._http.send(asked, stream=True)
        body = json.loads(raw) if raw else None
        self._recorder.requests.append(Recorded(request.method, path, headers, body, answer.status_code))
        kept = {name: value for name, value in answer.headers.items() if name not in _OF_ONE_CONNECTION}
        try:
            await StreamingResponse(answer.aiter_raw(), answer.status_code, kept)(scope, receive, send)
        finally:
            await answer.aclose()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the tests."""
        yield


@asynccontextmanager
async def recording(url: str) -> AsyncIterator[Recorder]:
    """A proxy before the server at `url`, on a free port."""
    recorder = Recorder("")
    async with httpx.AsyncClient(base_url=url, timeout=None) as http:
        proxy = _Proxy(http, recorder)
        config = uvicorn.Config(proxy, host="127.0.0.1", port=0, ws="none", log_config=None, lifespan="off")
        server = _Server(config)
        socket = config.bind_socket()
        recorder.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        task = asyncio.create_task(server.serve([socket]))
        try:
            yield recorder
        finally:
            server.should_exit = True
            server.force_exit = True
            await task
            socket.close()
