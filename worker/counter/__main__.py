"""``python -m worker.counter --channel-fd N --parent-pid P``: counts tokens for the agent that started it.

A frame is four bytes that number a question, and a `Count`; the answer is the same number, and a `Counted`. It ends
when nobody has asked for a while, and gives back the memory of its tokenizers.
"""

import argparse
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from shared import log as logs
from shared.process import die_with_parent
from worker.channel import Channel, ChannelClosed
from worker.counter.counter import Counter

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
    serve(Channel.from_fd(options.channel_fd), Counter())
    return 0


def serve(channel: Channel, counter: Counter, idle_s: float = IDLE_S) -> None:
    """Answer every frame of the channel; returns when the other side is gone, or was silent for so long."""
    sending = threading.Lock()
    open_questions: set[Future[None]] = set()

    def answer(frame: bytes) -> None:
        reply = frame[:NUMBER_BYTES] + counter.answer(frame[NUMBER_BYTES:])
        with sending:
            channel.send(reply)

    with ThreadPoolExecutor(NUM_THREADS, "count") as pool:
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
