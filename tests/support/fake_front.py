"""``python -m tests.support.fake_front``: a front that is warm at once and has no rank; it ends with its channel."""

import socket
import sys

from worker import protocol
from worker.channel import Channel, ChannelClosed

FAKE_FRONT = (sys.executable, "-m", "tests.support.fake_front")

if __name__ == "__main__":
    channel = Channel(socket.socket(fileno=int(sys.argv[sys.argv.index("--channel-fd") + 1])))
    if "--warm" in sys.argv:
        channel.send(protocol.encode(protocol.FrontStatus(state="loading", stage="warm")))
    try:
        while True:
            channel.receive(None)
    except ChannelClosed:
        pass
