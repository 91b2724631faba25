"""Requests that a client once sent, sent again to a fleet with a real engine, and read to their end."""

import json
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.recording_proxy import Recorded

ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, and what the usage says."""

    end: str  # the last event
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int


async def replay(api: str, model: str, recorded: Recorded) -> Outcome:
    """The same body but for the model's name and the length of the answer; AssertionError unless it is streamed."""
    surface = recorded.path.partition("?")[0].removeprefix("/v1")
    limit: dict[str, Any] = {"max_tokens": ANSWER_TOKENS}
    if surface == "/responses":
        limit = {"max_output_tokens": ANSWER_TOKENS}
    elif surface == "/chat/completions":
        limit["stream_options"] = {"include_usage": True}
    body = recorded.body | {"model": model} | limit
    async with (
        httpx.AsyncClient(timeout=300) as http,
        http.stream("POST", api.removesuffix("/v1") + recorded.path, json=body, headers=recorded.headers) as answer,
    ):
        lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert answer.status_code == 200, answer.status_code
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if surface == "/messages":
        usage = next(event["usage"] for event in events if event["type"] == "message_delta")
        cached = usage["cache_read_input_tokens"]
        return Outcome(events[-1]["type"], usage["input_tokens"] + cached, cached, usage["output_tokens"])
    if surface == "/responses":
        usage = events[-1]["response"]["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        return Outcome(events[-1]["type"], usage["input_tokens"], cached, usage["output_tokens"])
    usage = events[-1]["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Outcome(lines[-1], usage["prompt_tokens"], cached, usage["completion_tokens"])


ENDS = ("message_stop", "response.completed", "response.incomplete", "[DONE]")
