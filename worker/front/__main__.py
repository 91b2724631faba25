"""``python -m worker.front --channel-fd N --parent-pid P [--warm]``: the front of one replica, started by its agent.

With --warm it starts a rank before it has a configuration, and tells the agent when that has imported everything.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import uvloop

from shared import collector
from shared import log as logs
from shared.bus import Bus
from shared.process import die_with_parent
from shared.settings import BusSettings
from worker import protocol
from worker.channel import AsyncChannel, ChannelClosed
from worker.front.errors import RankFault
from worker.front.front import EXIT_FAILED, Front
from worker.front.rank_link import RankLink
from worker.front.spare import warm_until
from worker.protocol import Drain, FrontConfig, FrontStatus
from worker.text.model_text import ModelText

log = logs.get("worker.front")

SIGNAL_GRACE_S = 30.0  # when told to end by a signal instead of by the agent


def main(argv: list[str] | None = None) -> int:
    """Run until the agent drains us or is gone; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.front", description="Serve one replica.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--warm", action="store_true", help="start a rank before there is a configuration")
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(socket.socket(fileno=options.channel_fd), is_warm=options.warm))


async def _serve(sock: socket.socket, *, is_warm: bool) -> int:
    agent = await AsyncChannel.open(sock)

    def report(status: FrontStatus) -> None:
        agent.send(protocol.encode(status))

    spare: RankLink | None = None
    try:
        if is_warm:
            spare, frame = await warm_until(agent.receive(), report)
        else:
            frame = await agent.receive()
    except (ChannelClosed, RankFault):  # nobody needs it any more, or it is of no use
        return EXIT_FAILED
    config = protocol.decode_agent_to_front(frame)
    if not isinstance(config, FrontConfig):
        raise TypeError("the first frame must be the front's configuration")
    logs.setup(config.log_level, f"front:{config.replica}")
    settings = BusSettings(**config.nats)
    front = Front(
        config,
        connect=partial(Bus.connect, settings, kind="replica", ident=config.replica),
        load_text=partial(
            ModelText.load,
            Path(config.path),
            chat_template=config.model.chat_template,
            tool_convention=config.model.tool_convention,
            options=config.model.options,
        ),
        report=report,
        spare=spare,
        pid=os.getpid(),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, front.drain, SIGNAL_GRACE_S)
    listening = asyncio.create_task(_listen(agent, front))
    collector.keep_loaded()
    try:
        return await front.run()
    finally:
        listening.cancel()
        agent.close()
        await agent.wait_closed()  # the last status has gone out


async def _listen(agent: AsyncChannel, front: Front) -> None:
    """Do what the agent says; without an agent there is nothing to serve for."""
    try:
        while True:
            message = protocol.decode_agent_to_front(await agent.receive())
            if isinstance(message, Drain):
                front.drain(message.grace_s)
    except ChannelClosed:
        log.warning("agent.gone")
        front.stop()


if __name__ == "__main__":
    sys.exit(main())
