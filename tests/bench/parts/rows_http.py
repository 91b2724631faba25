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
PEER = "transformers serve"


def http(context: Context, shape: str) -> Iterator[Figure]:
    """Throughput and first tokens against `transformers serve` in bf16: of the weights as they are, and of int8.

    All three are measured in turn, so that one measurement of the peer serves both.
    """
    path = context.checkpoint(shape)
    with ExitStack() as stack:
        ours = {}
        for name, fields in (("http", {}), ("http-int8", {"quantization": "int8"})):  # each has all cores
            fleet = stack.enter_context(servers.fleet(context.scratch / f"{name}-{shape}"))
            ours[name] = fleet.serve(path, **fields)
        running = dict(ours)
        if context.transformers_python:
            log = context.scratch / f"http-{shape}-peer.log"
            running[PEER] = stack.enter_context(servers.transformers_serve(context.transformers_python, path, log))
        for server in running.values():  # first times of everything
            with server.awake():
                for tokens_in, _, _ in (SHORT, LONG):
                    asyncio.run(_load(context, shape, server, 4, 1, tokens_in, 12))
        for tokens_in, tokens_out, targets in [kind for kind in (SHORT, LONG) if kind[1] in context.answers]:
            for clients in context.clients:
                if tokens_out == LONG[1] and not context.is_first(shape) and clients > 8:
                    continue  # minutes for what the smaller model shows as well
                yield from _throughput(context, shape, running, clients, (tokens_in, tokens_out), targets[clients])


def _throughput(
    context: Context, shape: str, running: dict[str, Server], clients: int, tokens: tuple[int, int], target: float
) -> Iterator[Figure]:
    tokens_in, tokens_out = tokens
    rate: dict[str, list[float]] = {name: [] for name in running}
    first: dict[str, list[float]] = {name: [] for name in running}
    for number in range(context.heavy_rounds(shape)):
        for name, server in running.items():
            each = EACH[tokens_out][clients]
            with server.awake():
                found, wall_s = asyncio.run(_load(context, shape, server, clients, each, tokens_in, tokens_out))
            _check(found, tokens_out, server)
            rate[name].append(sum(one.tokens for one in found) / wall_s)
            first[name].append(statistics.median(one.ttft_s for one in found))
        context.say(f"http {shape} {tokens_in}/{tokens_out} {clients} clients: round {number + 1}: {_last(rate)}")
    peer, peer_first = rate.get(PEER, ()), first.get(PEER, ())
    for row, wanted in (("http", target), ("http-int8", INT8[tokens_out][clients])):
        yield Figure(
            row, f"{shape} {tokens_in} in / {tokens_out} out, {clients} clients", "tok/s", rate[row], peer, PEER,
            at_least=wanted if peer else None,
        )  # fmt: skip
        halves = row == "http" and tokens_out == SHORT[1] and clients == 16 and peer
        yield Figure(
            row, f"{shape} TTFT, {tokens_in} in / {tokens_out} out, {clients} clients", "s", first[row], peer_first,
            PEER, at_most=0.5 if halves else None,
        )  # fmt: skip


def _last(rates: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.1f} tok/s" for name, values in rates.items())


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
        for number in range(context.heavy_rounds(shape) + 1):
            messages = [texts.message(64) for _ in range(STREAMS)]
            without, beside, ttft_s = asyncio.run(_join(server, messages, texts.message(LONG_PROMPT)))
            if number:  # the first round warms up
                quiet.append(_p99(without) * 1e3)
                loud.append(_p99(beside) * 1e3)
                first.append(ttft_s)
            context.say(f"joining {shape}: round {number}: {_p99(without):.3f} s, {_p99(beside):.3f} s")
    yield Figure(
        "joining", f"{shape} p99 ITL of {STREAMS} streams while {LONG_PROMPT} tokens join", "ms", loud, quiet,
        "without", at_most=2.0,
    )  # fmt: skip
    yield Figure("joining", f"{shape} TTFT of the {LONG_PROMPT} tokens meanwhile", "s", first)


async def _join(server: Server, messages: list[str], long: str) -> tuple[list[float], list[float], float]:
    """Gaps between tokens of the running streams: before, and while the long prompt is computed."""
    tokens, found = 4000, [Stream() for _ in messages]  # more than there is time for
    requests = [streams.request(HOST, server.model, [_user(text)], tokens, server.key) for text in messages]
    running = [
        asyncio.create_task(streams.stream(HOST, server.port, request, into=one))
        for request, one in zip(requests, found, strict=True)
    ]
    while any(len(one.at) < 8 for one in found):  # noqa: ASYNC110  (they are filled as data comes)
        await asyncio.sleep(0.05)
    await asyncio.sleep(8.0)  # the streams run alone for a while: that is what is measured
    joined_at = time.perf_counter()
    last = await streams.stream(HOST, server.port, streams.request(HOST, server.model, [_user(long)], 2, server.key))
    await asyncio.sleep(0.5)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
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
        for number in range(context.heavy_rounds(shape)):
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
