"""Rows over HTTP: throughput, time to first token, streams beside a long prompt, the second turn of a conversation."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

from tests.bench.parts import servers, streams
from tests.bench.parts.context import Context
from tests.bench.parts.figures import Figure
from tests.bench.parts.servers import HOST, Server
from tests.bench.parts.streams import Stream

# Tokens in, tokens out, and the target against the peer by number of clients.
SHORT = (90, 24, {1: 2.0, 8: 2.3, 16: 2.5})
LONG = (64, 256, {1: 2.2, 8: 3.5, 16: 4.0})
INT8 = {24: {1: 3.0, 8: 3.0, 16: 3.0}, 256: {1: 3.5, 8: 5.0, 16: 5.0}}
EACH = {24: {1: 4, 8: 2, 16: 2}, 256: {1: 1, 8: 1, 16: 1}}  # requests of a client in a round
LONG_PROMPT = 4096
STREAMS = 15
CONVERSATION = 8192
PEER = "transformers"


def http(context: Context, shape: str) -> Iterator[Figure]:
    """Throughput and first tokens against `transformers serve`, bf16."""
    yield from _throughput(context, shape, "http", "", {24: SHORT[2], 256: LONG[2]})


def http_int8(context: Context, shape: str) -> Iterator[Figure]:
    """The same, int8 weights here against the peer's bf16."""
    yield from _throughput(context, shape, "http-int8", "int8", INT8)


def _throughput(
    context: Context, shape: str, row: str, quantization: str, targets: dict[int, dict[int, float]]
) -> Iterator[Figure]:
    path = context.checkpoint(shape)
    with ExitStack() as stack:
        fleet = servers.plexus(context.scratch / f"{row}-{shape}", path, quantization=quantization)
        both = [stack.enter_context(fleet)]
        if context.transformers_python:
            log = context.scratch / f"{row}-{shape}-peer.log"
            both.append(stack.enter_context(servers.transformers_serve(context.transformers_python, path, log)))
        for server in both:  # first times of everything
            for tokens_in, tokens_out, _ in (SHORT, LONG):
                asyncio.run(_load(context, shape, server, 4, 1, tokens_in, min(tokens_out, 24)))
        for server in both[1:]:
            with server.awake():
                pass
        for tokens_in, tokens_out, _ in (SHORT, LONG):
            for clients in context.clients:
                rate: dict[str, list[float]] = {server.name: [] for server in both}
                first: dict[str, list[float]] = {server.name: [] for server in both}
                for number in range(context.rounds):
                    for server in both:
                        with server.awake():
                            each = EACH[tokens_out][clients]
                            found, wall_s = asyncio.run(
                                _load(context, shape, server, clients, each, tokens_in, tokens_out)
                            )
                        _check(found, tokens_out, server)
                        rate[server.name].append(sum(one.tokens for one in found) / wall_s)
                        first[server.name].append(statistics.median(one.ttft_s for one in found))
                    context.say(f"{row} {shape} {tokens_in}/{tokens_out} {clients} clients: round {number + 1}")
                peer = rate.get("transformers serve", ())
                yield Figure(
                    row, f"{shape} {tokens_in} in / {tokens_out} out, {clients} clients", "tok/s", rate["plexus"],
                    peer, PEER, at_least=targets[tokens_out][clients] if peer else None,
                )  # fmt: skip
                halves = tokens_out == 24 and clients == 16 and peer
                yield Figure(
                    row, f"{shape} TTFT, {tokens_in} in, {clients} clients", "s", first["plexus"],
                    first.get("transformers serve", ()), PEER, at_most=0.5 if halves else None,
                )  # fmt: skip


async def _load(
    context: Context, shape: str, server: Server, clients: int, each: int, tokens_in: int, tokens_out: int
) -> tuple[list[Stream], float]:
    texts = context.texts(shape)
    requests = [
        [
            streams.request(HOST, server.model, [_user(texts.message(tokens_in))], tokens_out, server.key)
            for _ in range(each)
        ]
        for _ in range(clients)
    ]

    async def client(mine: list[bytes]) -> list[Stream]:
        return [await streams.stream(HOST, server.port, request) for request in mine]

    started = time.perf_counter()
    found = await asyncio.gather(*map(client, requests))
    return [one for several in found for one in several], time.perf_counter() - started


def _check(found: list[Stream], tokens_out: int, server: Server) -> None:
    wrong = [one.tokens for one in found if one.tokens != tokens_out]
    if wrong:
        raise RuntimeError(f"{server.name} made {wrong} tokens instead of {tokens_out}")


def joining(context: Context, shape: str) -> Iterator[Figure]:
    """What running streams feel of a long prompt that joins them."""
    path, texts = context.checkpoint(shape), context.texts(shape)
    quiet, loud, first = [], [], []
    with servers.plexus(context.scratch / f"joining-{shape}", path) as server:
        for number in range(context.rounds + 1):
            messages = [texts.message(64) for _ in range(STREAMS)]
            without, beside, ttft_s = asyncio.run(_join(server, messages, texts.message(LONG_PROMPT)))
            if number:  # the first round warms up
                quiet.append(_p99(without) * 1e3)
                loud.append(_p99(beside) * 1e3)
                first.append(ttft_s)
            context.say(f"joining {shape}: round {number} of {context.rounds}")
    yield Figure(
        "joining", f"{shape} p99 ITL of {STREAMS} streams while {LONG_PROMPT} tokens join", "ms", loud, quiet,
        "without", at_most=2.0,
    )  # fmt: skip
    yield Figure("joining", f"{shape} TTFT of the {LONG_PROMPT} tokens meanwhile", "s", first)


async def _join(server: Server, messages: list[str], long: str) -> tuple[list[float], list[float], float]:
    """Gaps between tokens of the running streams: before, and while the long prompt is computed."""
    tokens = 1200
    running = [
        asyncio.create_task(
            streams.stream(HOST, server.port, streams.request(HOST, server.model, [_user(text)], tokens, server.key))
        )
        for text in messages
    ]
    await asyncio.sleep(6.0)  # the streams run alone for a while: that is what is measured
    joined_at = time.perf_counter()
    last = await streams.stream(HOST, server.port, streams.request(HOST, server.model, [_user(long)], 2, server.key))
    found = await asyncio.gather(*running)
    begin = max(one.at[4] for one in found)
    without = [gap for one in found for gap in _gaps(one.at, begin, joined_at)]
    beside = [gap for one in found for gap in _gaps(one.at, joined_at, last.at[0])]
    if not without or not beside or min(one.at[-1] for one in found) < last.at[0]:
        raise RuntimeError("the streams ended before the long prompt was computed")
    return without, beside, last.ttft_s


def conversation(context: Context, shape: str) -> Iterator[Figure]:
    """The second turn of a long conversation, whose beginning the cache still holds."""
    path, texts = context.checkpoint(shape), context.texts(shape)
    firsts, seconds = [], []
    with servers.plexus(context.scratch / f"conversation-{shape}", path) as server:
        for number in range(context.rounds):
            messages = [_user(texts.message(CONVERSATION))]
            first = asyncio.run(_turn(server, messages))
            answer = {"role": "assistant", "content": first.text}
            second = asyncio.run(_turn(server, [*messages, answer, _user(texts.message(60))]))
            firsts.append(first.ttft_s)
            seconds.append(second.ttft_s)
            context.say(f"conversation {shape}: round {number + 1}: {first.ttft_s:.2f} s, {second.ttft_s:.2f} s")
    yield Figure(
        "conversation", f"{shape} TTFT of the second turn after {CONVERSATION} tokens", "s", seconds, firsts,
        "first turn", at_most=0.1,
    )  # fmt: skip


async def _turn(server: Server, messages: list[dict[str, str]]) -> Stream:
    return await streams.stream(HOST, server.port, streams.request(HOST, server.model, messages, 24, server.key))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _gaps(times: list[float], begin: float, end: float) -> list[float]:
    inside = [at for at in times if begin <= at <= end]
    return [later - earlier for earlier, later in itertools.pairwise(inside)]


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
