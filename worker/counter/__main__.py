"""``python -m worker.counter --channel-fd N --parent-pid P``: counts tokens for the agent that started it.

The first frame is the worker's mirrors, by name. Each further one is four bytes that number a question, and a `Count`;
the answer is the same number, and a `Counted`. It ends when nobody has asked for a while, and gives back the memory of
its tokenizers.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import msgspec

from shared import log as logs
from shared.process import die_with_parent
from shared.settings import SourceSettings
from worker.channel import Channel, ChannelClosed
from worker.counter.counter import Counter
from worker.counter.files import directory

IDLE_S = 600.0
NUM_THREADS = 4  # tokenizers work outside of the interpreter's lock, and one may be waiting for a download
NUMBER_BYTES = 4

log = logs.get("worker.counter")


def main(argv: list[str] | None = None) -> int:
    """Count until the agent is gone, or has not asked for a while; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.counter", description="Count tokens.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent
    logs.setup("info", "counter")
    channel = Channel.from_fd(options.channel_fd)
    try:
        first, *early = channel.receive(None)
    except ChannelClosed:
        return 0
    serve(channel, Counter(partial(directory, mirrors=read_mirrors(first))), early)
    return 0


def read_mirrors(frame: bytes) -> dict[str, SourceSettings]:
    """What `worker.agent.counting` sent."""
    tables: dict[str, dict[str, str]] = msgspec.json.decode(frame)
    return {name: SourceSettings(**table) for name, table in tables.items()}


def serve(channel: Channel, counter: Counter, early: Sequence[bytes] = (), idle_s: float = IDLE_S) -> None:
    """Answer every frame of the channel, and first the `early` ones.

    Returns when the other side is gone, or was silent for so long.
    """
    sending = threading.Lock()
    open_questions: set[Future[None]] = set()

    def answer(frame: bytes) -> None:
        reply = frame[:NUMBER_BYTES] + counter.answer(frame[NUMBER_BYTES:])
        with sending:
            channel.send(reply)

    with ThreadPoolExecutor(NUM_THREADS, "count") as pool:
        open_questions |= {pool.submit(answer, frame) for frame in early}
        try:
            while True:
                frames = channel.receive(idle_s)
                open_questions = {one for one in open_questions if not one.done()}
                if not frames and not open_questions:
                    return
                open_questions |= {pool.submit(answer, frame) for frame in frames}
        except ChannelClosed:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
