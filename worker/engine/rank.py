"""``python -m worker.engine.rank --channel-fd N --stamp-fd M --parent-pid P``: the process that owns a device.

Its life: stamp "start", the first frame is its RankConfig, load, report Ready, then steps for as long as there is work
and waiting for frames otherwise. Whatever goes wrong is told as Fatal and ends the process with code 1; it never
repairs itself, because a new process is the one sure repair. It ends at once when the other end of its channel closes
or its parent dies, also in the middle of a step. SIGTERM and SIGINT are ignored: the front decides.
"""

import argparse
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from shared.process import die_with_parent
from worker.channel import Channel, ChannelClosed
from worker.protocol import (
    Abort,
    Choice,
    Fatal,
    FrontToRank,
    Loading,
    RankConfig,
    Ready,
    Sample,
    Stop,
    Submit,
    decode_front_to_rank,
    encode,
)
from worker.stamp import Stamp

if TYPE_CHECKING:  # both come after the stamp, because importing them takes time
    from worker.engine.backends import Backend, Report
    from worker.engine.engine import Engine

_PROGRESS_INTERVAL_S = 0.1
_MAX_FATAL = 2000  # characters


def main(argv: list[str] | None = None) -> int:
    """Run the rank; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.rank", description="One rank of a replica.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--stamp-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(argv)
    stamp = Stamp(options.stamp_fd)
    stamp.write(0, "start")
    die_with_parent(options.parent_pid)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel.from_fd(options.channel_fd)
    _end_with_channel(options.channel_fd)
    try:
        _run(channel, stamp)
    except ChannelClosed:
        return 0
    except Exception as error:
        return _tell_fatal(channel, error)
    return 0


def _run(channel: Channel, stamp: Stamp) -> None:
    started = time.monotonic()
    frames = _receive(channel, None)
    config = frames.pop(0)
    if not isinstance(config, RankConfig):
        raise TypeError(f"the first frame must be rank_config, not {type(config).__name__}")
    _prepare(config)
    engine, ready = _load(config, channel, stamp, started)
    channel.send(encode(ready))
    _serve(engine, channel, frames)


def _prepare(config: RankConfig) -> None:
    """The environment of the libraries that are imported from here on."""
    from shared import log

    log.setup(config.log_level, f"rank:{os.getpid()}")
    os.environ |= {
        "OMP_NUM_THREADS": str(max(1, config.threads)),
        # Threads that spin at a barrier stall for whole scheduler slices as soon as a neighbour wants their core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "THP_MEM_ALLOC_ENABLE": "1",  # huge pages for weights
        "HF_HUB_OFFLINE": "1",  # a load never waits for a network
        "TOKENIZERS_PARALLELISM": "false",
    }


def _load(config: RankConfig, channel: Channel, stamp: Stamp, started: float) -> tuple["Engine", Ready]:
    report = _reporter(channel, stamp)
    report("import", 0, 0)
    from worker.engine.backends import load_backend
    from worker.engine.engine import Engine

    backend: Backend = load_backend(config, report)

    def make_engine(stamp: Stamp | None) -> Engine:
        return Engine(
            backend.runner,
            num_blocks=backend.num_blocks,
            block_tokens=backend.block_tokens,
            slots=config.slots,
            prefill_tokens=config.prefill_tokens,
            context_limit=backend.context_limit,
            stamp=stamp,
        )

    if not backend.is_warm:
        num_tokens = min(config.prefill_tokens, backend.context_limit - 2)
        _warm_up(make_engine(None), num_tokens, backend.runner.vocab_size)
    engine = make_engine(stamp)
    stamp.write(0, "idle")
    ready = Ready(
        blocks=backend.num_blocks,
        block_tokens=backend.block_tokens,
        context_limit=backend.context_limit,
        vocab_size=backend.runner.vocab_size,
        fingerprint=backend.fingerprint,
        measured_bytes=backend.measure(),
        load_s=time.monotonic() - started,
    )
    return engine, ready


def _warm_up(engine: "Engine", num_tokens: int, vocab_size: int) -> None:
    """Run the longest prompt chunk and a decode step once, so that no request pays for first times or meets a fault."""
    prompt = [number % vocab_size for number in range(max(1, num_tokens))]
    engine.submit(Submit(key="warm up", prompt=prompt, choices=[Choice(0)], sample=Sample(seed=0, max_tokens=2)))
    while engine.has_work:
        if refused := engine.step().refused:
            raise RuntimeError(f"the warm-up was refused: {refused[0].message}")


def _serve(engine: "Engine", channel: Channel, frames: list[FrontToRank]) -> None:
    """Step while there is work, wait for frames otherwise, until told to stop."""
    while True:
        for message in frames:
            match message:
                case Submit():
                    engine.submit(message)
                case Abort():
                    engine.abort(message.choices)
                case Stop():
                    return
                case RankConfig():
                    raise TypeError("a second rank_config; a rank is configured once")
        if frames or engine.has_work:  # also after an abort of everything: the front learns of the room it made
            channel.send(encode(engine.step()))
        frames = _receive(channel, 0.0 if engine.has_work else None)


def _receive(channel: Channel, timeout_s: float | None) -> list[FrontToRank]:
    return [decode_front_to_rank(frame) for frame in channel.receive(timeout_s)]


def _reporter(channel: Channel, stamp: Stamp) -> "Report":
    """Tells front and stamp of the stages of a load: each new one, then not more than ten frames a second."""
    latest, sent_at = "", 0.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal latest, sent_at
        now = time.monotonic()
        if stage != latest or now - sent_at >= _PROGRESS_INTERVAL_S or (total and done >= total):
            latest, sent_at = stage, now
            stamp.write(0, "warm up" if stage == "warm up" else "load")
            channel.send(encode(Loading(stage, done, total)))

    return report


def _end_with_channel(fd: int) -> None:
    """End the process the moment the other end closes, whatever it is doing."""
    hangup = getattr(select, "POLLRDHUP", select.POLLHUP)

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, hangup)
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="hang-up", daemon=True).start()


def _tell_fatal(channel: Channel, error: Exception) -> int:
    from shared import log

    log.get(__name__).exception("rank.fatal")
    try:
        channel.send(encode(Fatal(f"{type(error).__name__}: {error}"[:_MAX_FATAL])))
    except ChannelClosed:
        return 0
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # taking torch and a device context down in order is slow, and hangs after a device fault
