"""Rows about loading: a checkpoint of 1 GB through the whole fleet, and the rank beside busy streams."""

import asyncio
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.names import PLAN, intent_key, model_key
from shared.records import IntentRecord, ModelRecord, ReplicaRecord
from tests.bench.parts import checkpoints, ranks, servers, streams
from tests.bench.parts.context import Context
from tests.bench.parts.figures import Figure
from tests.bench.parts.ranks import PLAIN, num_cores, rank_config
from tests.bench.parts.servers import HOST, BenchFleet, Server
from worker.stamp import Stamp

LOADED = "0.5b"  # 1 GB
AIM = 1.3
STREAMS = 64
SPARE_S = 60.0
MEMORY_BYTES = 2800 << 20  # of a worker with room for one model of 1 GB


def load(context: Context, shape: str) -> Iterator[Figure]:
    """From the assignment to a ready replica, with the host's spare, against reading the file and copying it.

    Once with the file in the page cache and once without it, for both.
    """
    del shape
    path = context.checkpoint(LOADED)
    file = path / "model.safetensors"
    with servers.fleet(context.scratch / "load", PLEXUS_WORKER__STANDBY="true") as fleet:
        for temperature in ("warm", "cold"):
            ours, plain, stages = [], [], []
            for number in range(context.rounds + 1):
                _wait_for_spare(fleet)
                _set_cache(file, temperature)
                base_s = read_and_copy_s(file)
                _set_cache(file, temperature)
                total_s, record = asyncio.run(_load(fleet, path))
                fleet.unload(path.name)
                context.say(
                    f"load: {temperature} {number} of {context.rounds}: {total_s:.2f} s, read {base_s:.2f} s, "
                    f"{record.stages_s}"
                )
                if number:
                    ours.append(total_s)
                    plain.append(base_s)
                    stages.append(record.stages_s)
            size = checkpoints.weight_bytes(path)
            name = f"{size / 1e9:.2f} GB, assignment to ready, {temperature} page cache"
            yield Figure("load", name, "s", ours, plain, "read and copy", at_most=AIM)
            for stage in sorted({name for one in stages for name in one}):
                yield Figure("load", f"  of it {stage}", "s", [one.get(stage, 0.0) for one in stages])


def swap(context: Context, shape: str) -> Iterator[Figure]:
    """A worker with room for one of two models of 1 GB, asked for one while it has the other, idle and free to go."""
    del shape
    path = context.checkpoint(LOADED)
    file = path / "model.safetensors"
    ours, plain = [], []
    variables = {
        "PLEXUS_WORKER__STANDBY": "true",
        "PLEXUS_WORKER__MEMORY_BYTES": str(MEMORY_BYTES),
        "PLEXUS_GATEWAY__EVICTION__MIN_RESIDENCY_S": "0",
    }
    with servers.fleet(context.scratch / "swap", **variables) as fleet:
        asyncio.run(_offer(fleet, path, "ab"))
        total_s = _ask(fleet, "a")
        for number in range(2 * context.rounds + 1):
            may_go_at = time.monotonic() + total_s  # a replica may stay for as long as its load took
            _wait_for_spare(fleet)
            base_s = read_and_copy_s(file)
            time.sleep(max(0.0, may_go_at - time.monotonic()))
            total_s = _ask(fleet, "ba"[number % 2])
            context.say(f"swap: {number} of {2 * context.rounds}: {total_s:.2f} s, read {base_s:.2f} s")
            if number:
                ours.append(total_s)
                plain.append(base_s)
    name = f"{checkpoints.weight_bytes(path) / 1e9:.2f} GB, each of two in turn where one fits, request to first token"
    yield Figure("swap", name, "s", ours, plain, "read and copy", at_most=AIM)


def _set_cache(file: Path, temperature: str) -> None:
    """Have the file in the system's page cache, or not."""
    with file.open("rb") as stream:
        if temperature == "cold":
            os.fsync(stream.fileno())  # only what is written can be let go
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        while stream.read(64 << 20):
            pass


def read_and_copy_s(file: Path) -> float:
    """Seconds to read a file and copy what was read, with one thread, into memory that is new each time."""
    size = file.stat().st_size
    started = time.perf_counter()
    with mmap.mmap(-1, size) as first, mmap.mmap(-1, size) as second:
        with file.open("rb", buffering=0) as stream:
            view, done = memoryview(first), 0
            while done < size:
                done += stream.readinto(view[done:]) or 0
        np.copyto(np.frombuffer(second, np.uint8), np.frombuffer(first, np.uint8))
        view.release()
        return time.perf_counter() - started


async def _offer(fleet: BenchFleet, path: Path, names: str) -> None:
    """Put the checkpoint into the catalogue under each of these names."""
    async with await Bus.connect(fleet.process.bus_settings(), kind="cli", ident="bench") as bus:
        for name in names:
            await Bucket(bus, PLAN).put(model_key(name), encode(ModelRecord(id=name, source=str(path))))


def _ask(fleet: BenchFleet, model: str) -> float:
    """Seconds that an answer of one token takes."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    started = time.perf_counter()
    httpx.post(f"http://{HOST}:{fleet.port}/v1/chat/completions", json=body, timeout=300).raise_for_status()
    return time.perf_counter() - started


async def _load(fleet: BenchFleet, path: Path) -> tuple[float, ReplicaRecord]:
    """Seconds from writing the intent to a ready replica in the fleet's records, and its record."""
    async with await Bus.connect(fleet.process.bus_settings(), kind="cli", ident="bench") as bus, Fleet(bus) as view:
        plan, model = Bucket(bus, PLAN), path.name
        await plan.put(model_key(model), encode(ModelRecord(id=model, source=str(path))))
        started = time.perf_counter()
        await plan.put(intent_key(model), encode(IntentRecord(model=model, want="loaded", by="bench")))

        def ready(view: Fleet) -> ReplicaRecord | None:
            return next((one for one in view.replicas_of(model) if one.state == "ready"), None)

        await view.wait_for(ready, timeout_s=300)
        total_s, found = time.perf_counter() - started, ready(view)
        assert found is not None
        return total_s, found


def _wait_for_spare(fleet: BenchFleet) -> None:
    """Until the worker has a spare replica that nobody took."""
    deadline = time.monotonic() + SPARE_S
    while True:
        log = "".join(file.read_text(errors="replace") for file in fleet.process.data_dir.glob("logs/worker-*.log"))
        if log.rfind("standby.ready") > log.rfind("standby=True"):  # a load may take one that is not ready yet
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the worker made no spare replica")
        time.sleep(0.2)


def isolation(context: Context, shape: str) -> Iterator[Figure]:
    """A decode step of 64 sequences: in a rank that only this process listens to, and in one behind HTTP and NATS.

    Once with every core for the rank, which then shares them with front, gateway, broker and client; and once with half
    of them, as a worker has that is one of two.
    """
    for workers in (1, 2):
        if cores := num_cores() // workers:
            serving, alone = _isolation(context, shape, workers, cores)
            name = f"{shape} decode step of {STREAMS} sequences, {cores} of {num_cores()} cores, served over NATS"
            yield Figure("isolation", name, "ms", serving, alone, "alone")


def _isolation(context: Context, shape: str, workers: int, cores: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a step of a replica on one of so many workers with so many cores each, served and alone."""
    path, texts = context.checkpoint(shape), context.texts(shape)
    alone, serving = [], []
    prompt_tokens, tokens = 32, 400
    with servers.fleet(context.scratch / f"isolation-{shape}-{workers}", workers=workers) as fleet:
        record = fleet.load(path, max_slots=STREAMS, options=PLAIN)
        server = Server("plexus", fleet.port, path.name)
        stamp = Stamp(_stamp_fd(record.pids[0]))
        with ranks.running(rank_config(path, slots=STREAMS, options=PLAIN, threads=cores)) as rank:
            for number in range(context.rounds + 1):
                runs = [rank.submit(texts.ids(prompt_tokens), tokens) for _ in range(STREAMS)]
                rank.wait_first(*runs)
                before, started = rank.stamp.read().step, time.perf_counter()
                while time.perf_counter() - started < 8.0 and not any(run.has_ended for run in runs):
                    rank.hear()
                step_s = (time.perf_counter() - started) / (rank.stamp.read().step - before)
                rank.abort_all()
                messages = [texts.message(prompt_tokens) for _ in range(STREAMS)]
                served_s = asyncio.run(_serve(server, messages, tokens, stamp))
                if number:
                    alone.append(step_s * 1e3)
                    serving.append(served_s * 1e3)
                context.say(f"isolation {shape}, {cores} cores: round {number} of {context.rounds}")
        stamp.close()
    return serving, alone


async def _serve(server: Server, messages: list[str], tokens: int, stamp: Stamp) -> float:
    """The mean step of the rank while it serves these streams."""
    requests = [
        streams.request(HOST, server.model, [{"role": "user", "content": text}], tokens, server.key)
        for text in messages
    ]
    running = [asyncio.create_task(streams.stream(HOST, server.port, request)) for request in requests]
    while stamp.read().phase != "decode":  # noqa: ASYNC110  (it is another process that changes it)
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    before, started = stamp.read().step, time.perf_counter()
    await asyncio.sleep(8.0)
    step_s = (time.perf_counter() - started) / max(1, stamp.read().step - before)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return step_s


def _stamp_fd(front: int) -> int:
    """The stamp page that a front shares with its rank."""
    for entry in Path(f"/proc/{front}/fd").iterdir():
        try:
            if "plexus-stamp" in str(entry.readlink()):
                return os.open(entry, os.O_RDWR)
        except FileNotFoundError:
            continue
    raise RuntimeError("the front has no stamp; this row needs Linux")
