"""``python -m worker.engine.rank --channel-fd N --stamp-fd M --parent-pid P [--warm]``: the process that owns a device.

Its life: stamp "start"; with --warm the imports and Loading("warm"); the first frame is its RankConfig, load, report
Ready, then steps for as long as there is work and waiting for frames otherwise. Whatever goes wrong is told as Fatal
and ends the process with code 1; it never repairs itself, because a new process is the one sure repair. It ends at
once when the other end of its channel closes or its parent dies, also in the middle of a step. SIGTERM and SIGINT are
ignored: the front decides.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shared import collector
from shared.process import die_with_parent
from worker.channel import Channel, ChannelClosed
from worker.engine.pages import LATER
from worker.engine.process import end_with_channel, prepare, prepare_libraries
from worker.protocol import (
    Abort,
    Fatal,
    FatalKind,
    FrontToRank,
    Loading,
    RankConfig,
    Ranks,
    Ready,
    Stop,
    Submit,
    decode_front_to_rank,
    encode,
)
from worker.stamp import Stamp

if TYPE_CHECKING:  # both come after the stamp, because importing them takes time
    from worker.engine.backends import Backend
    from worker.engine.embedding import EmbeddingEngine
    from worker.engine.engine import Engine
    from worker.engine.parallel.group import Group

    AnyEngine = Engine | EmbeddingEngine

_PROGRESS_INTERVAL_S = 0.1
_IDLE_S = 0.5  # without work, before pages are joined
_JOINING_INTERVAL_S = 0.01  # from one to the next; what comes meanwhile waits for one at most
_MAX_FATAL = 2000  # characters
_LAST_WORDS_S = 2.5  # for whoever knows why another rank ended, to say so and end this process


def main(argv: list[str] | None = None) -> int:
    """Run the rank; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.rank", description="One rank of a replica.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--stamp-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--warm", action="store_true", help="import everything before there is a configuration")
    options = parser.parse_args(argv)
    stamp = Stamp(options.stamp_fd)
    stamp.write(0, "start")
    die_with_parent(options.parent_pid)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel = _Voice.from_fd(options.channel_fd)
    end_with_channel(options.channel_fd)
    try:
        _run(channel, stamp, is_warm=options.warm)
    except ChannelClosed:
        return 0
    except Exception as error:
        return _tell_fatal(channel, error)
    return 0


def _run(channel: Channel, stamp: Stamp, *, is_warm: bool) -> None:
    frames = _first_frames(channel, is_warm)
    started = time.monotonic()
    config = frames.pop(0)
    if not isinstance(config, RankConfig):
        raise TypeError(f"the first frame must be rank_config, not {type(config).__name__}")
    prepare(config, config.cpus[0] if config.cpus else [])
    group = _start_group(config, channel) if config.followers else None
    engine, ready = _load(config, channel, stamp, started, group)
    channel.send(encode(ready))
    collector.keep_loaded()
    _serve(engine, channel, frames)


def _first_frames(channel: Channel, is_warm: bool) -> list[FrontToRank]:
    """Wait for the configuration, and use the time."""
    prepare_libraries()
    if not is_warm:
        return _receive(channel, None)
    from worker.engine.warm import Warming

    def tell() -> None:
        with contextlib.suppress(ChannelClosed):
            channel.send(encode(Loading("warm")))

    warming = Warming(tell).start()
    frames = _receive(channel, None)
    warming.finish()
    return frames


def _start_group(config: RankConfig, channel: Channel) -> "Group":
    """The other ranks. When one of them ends, so does this one, whatever it is doing."""
    from worker.engine.parallel.group import Group

    def end(reason: str, kind: FatalKind) -> None:
        with contextlib.suppress(ChannelClosed):
            channel.send(encode(Fatal(reason[:_MAX_FATAL], kind)))
        os._exit(1)

    group = Group(config, end)
    channel.send(encode(Ranks(group.pids)))
    return group


def _load(
    config: RankConfig, channel: Channel, stamp: Stamp, started: float, group: "Group | None"
) -> "tuple[AnyEngine, Ready]":
    report = _Reporter(channel, stamp)
    report("import", 0, 0)
    LATER.begin()
    if config.task == "embed":
        from worker.engine.embedding_backend import load_embedding

        return load_embedding(config, report, stamp, started)
    from worker.engine.backends import load_backend
    from worker.engine.engine import Engine
    from worker.engine.grammar import Grammars

    backend: Backend = load_backend(config, report, group)

    # A runner without a model samples nothing, so there is nothing to hold to a grammar.
    grammars = Grammars(Path(config.path), backend.runner.vocab_size) if config.backend == "torch" else None

    def make_engine(stamp: Stamp | None) -> Engine:
        return Engine(
            backend.runner,
            num_blocks=backend.num_blocks,
            block_tokens=backend.block_tokens,
            slots=config.slots,
            prefill_tokens=config.prefill_tokens,
            context_limit=backend.context_limit,
            cap=backend.cap,
            num_host_blocks=backend.num_host_blocks,
            speculate=backend.speculate,
            draft=backend.draft,
            grammars=grammars,
            sight=backend.sight,
            stamp=stamp,
        )

    if not backend.is_warm:
        from worker.engine.profile import warm_up

        warm_up(make_engine(None), min(config.prefill_tokens, backend.context_limit - 2), backend.runner.vocab_size)
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
        stages_s=report.stages_s(),
    )
    return engine, ready


def _serve(engine: "AnyEngine", channel: Channel, frames: list[FrontToRank]) -> None:
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
        frames = _receive(channel, 0.0) if engine.has_work else _idle(channel)


def _idle(channel: Channel) -> list[FrontToRank]:
    """The next frames; until there are any, a good time to join pages."""
    interval_s = _IDLE_S
    while LATER.has_more:
        if frames := _receive(channel, interval_s):
            return frames
        LATER.join_one()
        interval_s = _JOINING_INTERVAL_S
    return _receive(channel, None)


def _receive(channel: Channel, timeout_s: float | None) -> list[FrontToRank]:
    return [decode_front_to_rank(frame) for frame in channel.receive(timeout_s)]


class _Voice(Channel):
    """A channel on which a thread may say the last words while the main thread speaks."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._speaking = threading.Lock()

    def send(self, payload: bytes) -> None:
        """Send one frame. Raises ChannelClosed."""
        with self._speaking:
            super().send(payload)


class _Reporter:
    """Tells front and stamp of the stages of a load: each new one, then not more than ten frames a second."""

    def __init__(self, channel: Channel, stamp: Stamp) -> None:
        self._channel = channel
        self._stamp = stamp
        self._stage = ""
        self._began_at = self._sent_at = 0.0
        self._stages_s: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_new = stage != self._stage
        if is_new:
            self._close(now)
            self._stage, self._began_at = stage, now
        if is_new or now - self._sent_at >= _PROGRESS_INTERVAL_S or (total and done >= total):
            self._sent_at = now
            self._stamp.write(0, "warm up" if stage == "warm up" else "load")
            self._channel.send(encode(Loading(stage, done, total)))

    def stages_s(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        self._close(time.monotonic())
        return {stage: round(spent, 4) for stage, spent in self._stages_s.items()}

    def _close(self, now: float) -> None:
        if self._stage:
            self._stages_s[self._stage] = self._stages_s.get(self._stage, 0.0) + now - self._began_at
        self._began_at = now


def _tell_fatal(channel: Channel, error: Exception) -> int:
    from shared import log
    from worker.engine.errors import GroupLost

    if isinstance(error, GroupLost):  # whoever watches the other ranks knows why, if one of them has ended
        time.sleep(_LAST_WORDS_S)

    log.get(__name__).exception("rank.fatal")
    try:
        from worker.engine.limit import is_want_of_memory

        kind: FatalKind = "out_of_memory" if is_want_of_memory(error) else ""
        channel.send(encode(Fatal(f"{type(error).__name__}: {error}"[:_MAX_FATAL], kind)))
    except ChannelClosed:
        return 0
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # taking torch and a device context down in order is slow, and hangs after a device fault
