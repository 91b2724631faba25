"""``python -m worker.engine.parallel.follower --channel-fd N --parent-pid P``: a rank that is not the first.

It has weights and a cache, and does what the first rank tells it. It ends at once when that ends, also in the middle of
a step; what it cannot do it says, and ends.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shared.process import die_with_parent
from worker.channel import Channel, ChannelClosed
from worker.engine.parallel import messages
from worker.engine.parallel.messages import (
    Ask,
    Done,
    Failed,
    Join,
    Load,
    Make,
    Measure,
    Meet,
    Move,
    Pack,
    Reference,
    Run,
    ToFirst,
    ToFollower,
)
from worker.engine.process import end_with_channel, prepare, prepare_libraries, torch_device

if TYPE_CHECKING:  # importing these takes time, and is done once it is known what for
    from worker.engine.parallel.share import Share
    from worker.engine.prepared import Computes

_MAX_MESSAGE = 2000  # characters


def main(argv: list[str] | None = None) -> int:
    """Run the rank; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.parallel.follower", description="A further rank.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel.from_fd(options.channel_fd)
    end_with_channel(options.channel_fd)
    try:
        _serve(channel)
    except ChannelClosed:
        return 0
    except Exception as error:
        return _tell(channel, error)
    return 0


def _serve(channel: Channel) -> None:
    """Do what the first rank says, for ever."""
    prepare_libraries()
    frames: list[bytes] = []
    follower: Follower | None = None
    while True:
        frames = frames or channel.receive(None)
        message = messages.decode_to_follower(frames.pop(0))
        if follower is None:
            assert isinstance(message, Join), message
            prepare(message.config, message.cpus)
            follower = Follower(message)
        elif (answer := follower.do(message)) is not None:
            channel.send(messages.encode(answer))


class Follower:
    """What a follower knows, from message to message."""

    def __init__(self, join: Join) -> None:
        import torch

        from worker.engine.threads import num_threads

        self._join = join
        self._device = torch.device(torch_device(join.config.device))
        torch.set_num_threads(num_threads(join.config.threads))
        torch.set_num_interop_threads(1)
        self._share: Share | None = None
        self._computes: Computes | None = None
        self._block_tokens = 0
        self._cache_bytes = 0
        self._failure: Exception | None = None  # of the last step

    def do(self, message: ToFollower) -> ToFirst | None:
        """Do it; the answer, if there is to be one. What it raises ends the rank."""
        match message:
            case Run():
                self._run(message)
                return None
            case Move():
                self._move(message)
                return None
            case Ask():
                return _failed(self._failure) if self._failure is not None else Done()
            case Load():
                return self._load(message)
            case Meet():
                from worker.engine.parallel import collectives

                collectives.join(self._join.rank, self._join.size, self._device, message.port)
                return None
            case Reference():
                self._loaded.reference()
                return None
            case Pack():
                return Done(self._loaded.pack())
            case Make():
                self._computes = None  # its memory first
                self._computes = self._loaded.make(message)
                self._block_tokens = message.block_tokens
                self._cache_bytes = self._loaded.cache_bytes(message)
                return Done()
            case Measure():
                return Done(self._measure())
            case Join():
                raise TypeError("a second join; a rank is configured once")

    @property
    def _loaded(self) -> "Share":
        assert self._share is not None, "nothing is loaded"
        return self._share

    def _load(self, wanted: Load) -> Done:
        from worker.engine.parallel.share import Share
        from worker.models.division import Division
        from worker.models.load import read_config

        path = Path(wanted.path)
        self._share = self._computes = None
        division = Division.of(path, self._join.size, self._join.rank, read_config(path).to_dict())
        self._share = Share(wanted, division, self._device)
        return Done()

    def _run(self, message: Run) -> None:
        from worker.engine.errors import DeviceLost
        from worker.engine.parallel.steps import kept, receive_rows

        computes, collectives = self._computes, self._loaded.collectives
        assert computes is not None, "there is no cache"
        self._failure = None
        rows = receive_rows(message.rows, self._block_tokens)
        collectives.reserve(sum(row.stop - row.start for row in rows), sum(len(kept(row)) for row in rows))
        try:
            collectives.run(lambda: computes.forward(rows, kept))
        except DeviceLost:
            raise
        except Exception as error:  # the first rank asks when it sees what came of it
            self._failure = error

    def _move(self, message: Move) -> None:
        from worker.engine.plan import Transfer

        assert self._computes is not None, "there is no cache"
        self._computes.transfer([Transfer(*one) for one in message.transfers])

    def _measure(self) -> int:
        from worker.engine.backends import taken_bytes

        return taken_bytes(str(self._device), self._cache_bytes)


def _failed(error: Exception) -> Failed:
    from worker.engine.limit import is_want_of_memory

    kind = "out_of_memory" if is_want_of_memory(error) else ""
    return Failed(f"{type(error).__name__}: {error}"[:_MAX_MESSAGE], kind)  # type: ignore[arg-type]


def _tell(channel: Channel, error: Exception) -> int:
    from shared import log

    log.get(__name__).exception("rank.fatal")
    try:
        channel.send(messages.encode(_failed(error)))
    except ChannelClosed:
        return 0
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # as the first rank does
