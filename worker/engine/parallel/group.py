"""The first rank's view of the others: starts them, tells them what to do, hears their answers, ends with them."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import msgspec

from worker import channel
from worker.channel import Channel, ChannelClosed
from worker.engine.errors import EngineError, GroupLost, OutOfMemory
from worker.engine.parallel import messages
from worker.engine.parallel.messages import Ask, Done, Failed, Join, ToFollower
from worker.protocol import FatalKind, RankConfig

FOLLOWER = (sys.executable, "-m", "worker.engine.parallel.follower")
_END_S = 1.0  # for a rank that closed its channel to have ended, and for whoever knows more to say it
_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)

Lost = Callable[[str, FatalKind], None]


class RankFailed(EngineError):
    """Another rank cannot do its part. Its message says why."""


class _Other:
    """One other rank."""

    def __init__(self, rank: int, config: RankConfig, size: int, cpus: list[int], command: Sequence[str]) -> None:
        self.name = f"rank {rank} on {config.device}"
        ours, theirs = channel.pair()
        with theirs:
            # By the main thread: children end with the thread that started them.
            self.process = subprocess.Popen(
                [*command, "--channel-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.fd = ours.fileno()
        self._channel = Channel(ours)
        self._reading = threading.Lock()
        self._unread: list[bytes] = []
        self._failed: Failed | None = None  # its last answer, if that was one
        self.send(messages.encode(Join(rank=rank, size=size, config=config, cpus=cpus)))

    def send(self, frame: bytes) -> None:
        self._failed = None
        try:
            self._channel.send(frame)
        except ChannelClosed as error:
            raise GroupLost(f"{self.name} has ended") from error

    def answer(self) -> Done | Failed:
        """The next. Raises GroupLost when there is none any more."""
        with self._reading:
            if not self._unread:
                try:
                    self._unread = self._channel.receive(None)
                except ChannelClosed as error:
                    raise GroupLost(f"{self.name} has ended") from error
            answer = messages.decode_to_first(self._unread.pop(0))
            self._failed = answer if isinstance(answer, Failed) else None
            return answer

    def close(self) -> None:
        self.process.wait()
        self._channel.close()

    def last_words(self) -> Failed:
        """Of a rank whose channel is closed: what it said of its end, else what the system says."""
        words: list[Done | Failed] = []
        if self._reading.acquire(timeout=_END_S):  # else somebody reads them now, and will tell
            try:
                words = [messages.decode_to_first(frame) for frame in self._unread + self._channel.receive(0.0)]
            except ChannelClosed:
                pass
            finally:
                self._reading.release()
        told = next((word for word in reversed(words) if isinstance(word, Failed)), self._failed)
        try:
            status = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if told is not None:
            return Failed(f"{self.name}: {told.message}", told.kind)
        how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        return Failed(f"{self.name} {how}")


class Group:
    """Starts the other ranks of a configuration.

    Args:
        config: of the first rank, with the devices of the others.
        on_lost: called in a thread of its own when another rank has ended; it must end this process.
        command: starts one of them.
    """

    def __init__(self, config: RankConfig, on_lost: Lost, command: Sequence[str] = FOLLOWER) -> None:
        devices = [config.device, *config.followers]
        self.size = len(devices)
        self.has_met = False
        self._on_lost = on_lost
        self._is_closing = False
        self._others = [
            _Other(
                rank,
                msgspec.structs.replace(config, device=device, followers=[]),
                self.size,
                config.cpus[rank] if rank < len(config.cpus) else [],
                command,
            )
            for rank, device in enumerate(devices)
            if rank
        ]
        self._watching = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watching.start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the other ranks."""
        return [other.process.pid for other in self._others]

    def send(self, message: ToFollower) -> None:
        """Tell all of them. Raises GroupLost."""
        frame = messages.encode(message)
        for other in self._others:
            other.send(frame)

    def answers(self) -> list[Done]:
        """One of each. Raises OutOfMemory or RankFailed if one of them cannot, GroupLost if one has ended."""
        found = []
        for other in self._others:
            answer = other.answer()
            if isinstance(answer, Failed):
                raise _error(other.name, answer)
            found.append(answer)
        return found

    def ask(self) -> Exception | None:
        """What went wrong on other ranks in the last step; None: nothing did."""
        self.send(Ask())
        answers = [(other.name, other.answer()) for other in self._others]
        failures = [(name, answer) for name, answer in answers if isinstance(answer, Failed)]
        failures.sort(key=lambda one: one[1].kind == "")  # want of memory first: others failed for what came of it
        return _error(*failures[0]) if failures else None

    def close(self) -> None:
        """End the other ranks, for whoever outlives them. May be called twice."""
        self._is_closing = True
        for other in self._others:
            other.process.kill()
        self._watching.join()
        for other in self._others:
            other.close()

    def _watch(self) -> None:
        poll = select.poll()
        for other in self._others:
            poll.register(other.fd, _HANGUP)
        fds = {fd for fd, _ in poll.poll()}
        if self._is_closing:
            return
        words = [other.last_words() for other in self._others if other.fd in fds]
        first = next((word for word in words if word.kind), words[0])
        self._on_lost(f"{first.message}; a replica's ranks end together", first.kind)


def _error(name: str, failed: Failed) -> Exception:
    text = f"{name}: {failed.message}"
    return OutOfMemory(text) if failed.kind == "out_of_memory" else RankFailed(text)
